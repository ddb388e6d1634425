"""Pictures decoded once: a file of all pixels, known by the content of the pictures and mapped into memory."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.pictures import PREPARATION_VERSION, Preparation, UnreadablePictureError, read_pictures
from fashion_cnn.pictures.decoding import FORMATS
from fashion_cnn.pictures.files import read_ahead
from fashion_cnn.runs import remove_stale_files, write_atomically

Progress = Callable[[int, int], None]
_LOOKED_AT_TOGETHER = 64


@dataclass(frozen=True)
class Looked:
    """What a look at a file says: its size and time of change, the SHA-256 of its content, its picture's width, height
    (0 where its header cannot be read) and whether it is grey.
    """

    size: int
    changed: int
    content: str
    width: int
    height: int
    grey: bool


@dataclass(frozen=True)
class Decoded:
    """images `(N, C, H, W)` uint8; unreadable: why, by the position of the picture, whose pixels are then black."""

    images: Tensor
    unreadable: dict[int, str]


def cache_folder() -> Path:
    """Where caches are kept: `fashion_cnn` in the user's folder of caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fashion_cnn"


def _name_of(root: Path) -> str:
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]


def listing_of(root: Path, folder: Path) -> Path:
    """The file that lists the pictures of `root` which cannot be read."""
    return folder / f"{_name_of(root)}-left-out.txt"


def look_at(root: Path, paths: Sequence[str], folder: Path, progress: Progress) -> list[Looked]:
    """A look at each file; those that have not changed since the last time are not read again."""
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / f"{_name_of(root)}.json"
    try:
        before = {path: Looked(*values) for path, values in json.loads(index.read_text()).items()}
    except (OSError, ValueError, TypeError):
        before = {}

    def look(path: str) -> Looked:
        try:
            status = (root / path).stat()
        except OSError:  # decoding it will say why
            return Looked(0, 0, "", 0, 0, True)
        known = before.get(path)
        if known and (known.size, known.changed) == (status.st_size, status.st_mtime_ns):
            return known
        try:
            content, changed = (root / path).read_bytes(), status.st_mtime_ns
        except OSError:  # this too; it may be readable the next time
            content, changed = b"", 0
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                kind = (*image.size, image.mode.startswith(("1", "L", "I", "F")))
        except Exception:  # likewise
            kind = (0, 0, True)
        return Looked(status.st_size, changed, hashlib.sha256(content).hexdigest(), *kind)

    looked: list[Looked] = []
    # Most have not changed, and are looked at in less time than a thread takes to be asked.
    parts = [paths[start : start + _LOOKED_AT_TOGETHER] for start in range(0, len(paths), _LOOKED_AT_TOGETHER)]
    for _, found in read_ahead(parts, lambda part: [look(path) for path in part]):
        looked += found
        progress(len(looked), len(paths))
    now = dict(zip(paths, looked, strict=True))
    if now != before:
        write_atomically(index, json.dumps({path: tuple(vars(found).values()) for path, found in now.items()}))
    return looked


def decoded(
    root: Path,
    paths: Sequence[str],
    looked: Sequence[Looked],
    preparation: Preparation,
    folder: Path,
    *,
    in_memory_up_to: int,
    progress: Progress,
) -> Decoded:
    """The pictures, out of the cache where it has them, else decoded in parallel and cached.

    in_memory_up_to: bytes; a cache that is larger stays a file, mapped into memory. Raises UserError where the cache
    cannot be written.
    """
    described = [
        PREPARATION_VERSION,
        *vars(preparation).values(),
        [(path, one.content) for path, one in zip(paths, looked, strict=True)],
    ]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]
    pixels, reasons = folder / f"{key}.npy", folder / f"{key}.json"
    try:
        return _cached(pixels, reasons, in_memory_up_to)
    except (OSError, ValueError, EOFError):  # there is none, or a damaged one
        pass
    try:
        _write(root, paths, preparation, pixels, reasons, progress)
    except OSError as error:
        raise UserError(
            f"The pictures cannot be cached in {folder} ({error.strerror}): make room, or set XDG_CACHE_HOME to a "
            "folder elsewhere."
        ) from error
    return _cached(pixels, reasons, in_memory_up_to)


def _cached(pixels: Path, reasons: Path, in_memory_up_to: int) -> Decoded:
    unreadable = {int(place): reason for place, reason in json.loads(reasons.read_text()).items()}
    # A copy on write: torch wants to be able to write, and nothing does.
    images: Any = np.load(pixels, mmap_mode="c")
    return Decoded(torch.from_numpy(images if images.nbytes > in_memory_up_to else images.copy()), unreadable)


def _write(
    root: Path, paths: Sequence[str], preparation: Preparation, pixels: Path, reasons: Path, progress: Progress
) -> None:
    """Decode all pictures; the files appear once they are whole."""
    remove_stale_files(pixels.parent, "*.partial")
    partial = pixels.with_name(f"{pixels.stem}-{os.getpid()}.partial")
    unreadable: dict[int, str] = {}

    black = np.zeros(preparation.image_shape, np.uint8)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), *preparation.image_shape)}
    try:
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for place, (_, picture) in enumerate(read_pictures([root / path for path in paths], preparation)):
                if isinstance(picture, UnreadablePictureError):
                    unreadable[place] = str(picture)
                file.write(picture.numpy().tobytes() if isinstance(picture, Tensor) else black.tobytes())
                progress(place + 1, len(paths))
            file.flush()
            os.fsync(file.fileno())
        write_atomically(reasons, json.dumps(unreadable))
        partial.replace(pixels)
    finally:
        partial.unlink(missing_ok=True)
