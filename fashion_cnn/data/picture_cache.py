"""Decode pictures once into a file of all pixels, named by the content of the pictures and mapped into memory.

The cache has two kinds of entries: the pixels of a set of pictures, and the scan of a folder. Each use renews the
modification time of an entry, and a process holds a shared lock on the pixels that it has read: the least recently used
entries that no process uses can be removed.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.pictures import (
    PREPARATION_VERSION,
    Preparation,
    UnreadablePictureError,
    open_picture,
    read_pictures,
)
from fashion_cnn.pictures.files import read_ahead
from fashion_cnn.runs import write_atomically
from fashion_cnn.runs.files import flock, open_atomically, remove_partial_files

# Called with the number of finished items and of all items.
Progress = Callable[[int, int], None]
_FILES_PER_TASK = 64
_ENTRY_NAME = re.compile(r"([0-9a-f]{16}|[0-9a-f]{32})(-left-out)?\.(npy|json|txt)")
# File descriptors of the pixels that this process has read, with shared locks that last until it ends.
_in_use: dict[Path, int] = {}


@dataclass(frozen=True)
class FileInfo:
    """Properties of a picture file, stored to detect changes.

    Attributes:
        size: size in bytes.
        changed: time of the last change in nanoseconds.
        content: SHA-256 of the content.
        width: width of the picture in pixels, 0 if its header cannot be read.
        height: height in pixels, 0 as for `width`.
        grey: whether the picture is grey.
    """

    size: int
    changed: int
    content: str
    width: int
    height: int
    grey: bool


@dataclass(frozen=True)
class DecodedPictures:
    """Decoded pictures of a folder.

    Attributes:
        images: `(N, C, H, W)` uint8; unreadable pictures are black.
        unreadable: the reason of each unreadable picture, by its position.
    """

    images: Tensor
    unreadable: dict[int, str]


def cache_folder() -> Path:
    """Return the folder `fashion_cnn` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fashion_cnn"


def _hash_of(root: Path) -> str:
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]


def unreadable_list(root: Path, folder: Path) -> Path:
    """Return the file in the cache `folder` that lists the unreadable pictures of `root`."""
    return folder / f"{_hash_of(root)}-left-out.txt"


def scan_files(root: Path, paths: Sequence[str], folder: Path, progress: Progress) -> list[FileInfo]:
    """Return the properties of each file; unchanged files are not read again.

    Args:
        root: the folder of the pictures.
        paths: paths of the files, relative to `root`.
        folder: folder of the cache.
        progress: called after each group of files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / f"{_hash_of(root)}.json"
    _renew(index)
    try:
        before = {path: FileInfo(*values) for path, values in json.loads(index.read_text()).items()}
    except (OSError, ValueError, TypeError):
        before = {}

    def scan(path: str) -> FileInfo:
        try:
            status = (root / path).stat()
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it could block")
        except OSError:  # Decoding the file reports the reason.
            return FileInfo(0, 0, "", 0, 0, True)
        known = before.get(path)
        if known and (known.size, known.changed) == (status.st_size, status.st_mtime_ns):
            return known
        try:
            content, changed = (root / path).read_bytes(), status.st_mtime_ns
        except OSError:  # Not stored as unchanged, since it may be readable the next time.
            content, changed = b"", 0
        try:
            with open_picture(content) as image:
                header = (*image.size, image.mode.startswith(("1", "L", "I", "F")))
        except Exception:  # Decoding the file reports the reason.
            header = (0, 0, True)
        return FileInfo(status.st_size, changed, hashlib.sha256(content).hexdigest(), *header)

    infos: list[FileInfo] = []
    # Checking an unchanged file takes less time than giving it to a thread.
    tasks = [paths[start : start + _FILES_PER_TASK] for start in range(0, len(paths), _FILES_PER_TASK)]
    for _, scanned in read_ahead(tasks, lambda task: [scan(path) for path in task]):
        infos += scanned
        progress(len(infos), len(paths))
    now = dict(zip(paths, infos, strict=True))
    if now != before:
        write_atomically(index, json.dumps({path: tuple(vars(info).values()) for path, info in now.items()}))
    return infos


def decode_cached(
    root: Path,
    paths: Sequence[str],
    infos: Sequence[FileInfo],
    preparation: Preparation,
    folder: Path,
    *,
    max_bytes_in_memory: int,
    max_cache_bytes: int | None = None,
    progress: Progress,
) -> DecodedPictures:
    """Return the prepared pictures from the cache, or decode them in parallel and cache them.

    Args:
        root: the folder of the pictures.
        paths: paths of the files, relative to `root`.
        infos: their properties, see `scan_files`.
        preparation: how each picture becomes an image.
        folder: folder of the cache.
        max_bytes_in_memory: limit in bytes above which the images stay in the file, which is mapped into memory.
        max_cache_bytes: size of the whole cache in bytes above which other entries are removed; None for no limit.
        progress: called after each picture.

    Raises:
        UserError: if the cache cannot be written.
    """
    contents = [(path, info.content) for path, info in zip(paths, infos, strict=True)]
    description = json.dumps([PREPARATION_VERSION, *vars(preparation).values(), contents])
    key = hashlib.sha256(description.encode()).hexdigest()[:32]
    pixels, reasons = folder / f"{key}.npy", folder / f"{key}.json"
    try:
        return _load(pixels, reasons, max_bytes_in_memory)
    except (OSError, ValueError, EOFError):  # The cache is missing or damaged.
        pass
    try:
        _write(root, paths, preparation, pixels, reasons, progress)
    except OSError as error:
        raise UserError(
            f"The pictures cannot be cached in {folder} ({error.strerror}): free some space, or set XDG_CACHE_HOME to "
            "another folder."
        ) from error
    decoded = _load(pixels, reasons, max_bytes_in_memory)
    if max_cache_bytes is not None:
        remove_entries(folder, max_bytes=max_cache_bytes)
    return decoded


def _load(pixels: Path, reasons: Path, max_bytes_in_memory: int) -> DecodedPictures:
    _lock(pixels)
    stored = json.loads(reasons.read_text())
    stored.pop("root", None)
    unreadable = {int(position): reason for position, reason in stored.items()}
    # torch requires a writable array; copy-on-write mapping leaves the file unchanged.
    images: Any = np.load(pixels, mmap_mode="c")
    in_memory = images if images.nbytes > max_bytes_in_memory else images.copy()
    return DecodedPictures(torch.from_numpy(in_memory), unreadable)


def _write(
    root: Path, paths: Sequence[str], preparation: Preparation, pixels: Path, reasons: Path, progress: Progress
) -> None:
    """Decode all pictures into the files `pixels` and `reasons`, which appear when they are complete."""
    remove_partial_files(pixels.parent)
    unreadable: dict[int, str] = {}
    black = np.zeros(preparation.image_shape, np.uint8)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), *preparation.image_shape)}
    with open_atomically(pixels) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for position, (_, picture) in enumerate(read_pictures([root / path for path in paths], preparation)):
            if isinstance(picture, UnreadablePictureError):
                unreadable[position] = str(picture)
            file.write(picture.numpy().tobytes() if isinstance(picture, Tensor) else black.tobytes())
            progress(position + 1, len(paths))
        write_atomically(reasons, json.dumps({"root": str(root.resolve()), **unreadable}))


def _renew(path: Path) -> None:
    """Mark a file as used now."""
    with suppress(OSError):  # It is missing, or belongs to another user.
        os.utime(path)


def _lock(pixels: Path) -> None:
    """Keep other processes from removing a file of pixels until this process ends. Raises OSError if it is missing."""
    descriptor = os.open(pixels, os.O_RDONLY)
    with suppress(OSError):  # Some network file systems have no locks.
        flock(descriptor, shared=True, wait=True)
    # Another process may have removed it before the lock.
    if not pixels.exists() or not os.path.samestat(os.fstat(descriptor), pixels.stat()):
        os.close(descriptor)
        raise FileNotFoundError(pixels)
    _renew(pixels)
    if pixels in _in_use:
        os.close(_in_use[pixels])
    _in_use[pixels] = descriptor


@dataclass(frozen=True)
class CacheEntry:
    """Files of the cache that belong together.

    Attributes:
        files: the pixels of a set of pictures and the reasons of the unreadable ones, or the scan of a folder.
        size: size in bytes.
        used: time of the last use in seconds since 1970.
        root: folder of the pictures; None if it is not known.
    """

    files: tuple[Path, ...]
    size: int
    used: float
    root: str | None

    def remove(self) -> bool:
        """Delete the files, and return whether no process uses them."""
        try:
            for file in sorted(self.files, key=lambda path: path.suffix != ".npy"):
                if file.suffix != ".npy":
                    file.unlink(missing_ok=True)
                    continue
                with file.open("rb") as pixels:
                    flock(pixels)
                    file.unlink()
        except OSError:
            return False
        return True

    def is_in_use(self) -> bool:
        """Return whether a process has read the pixels."""
        for file in self.files:
            if file.suffix == ".npy":
                try:
                    with file.open("rb") as pixels:
                        flock(pixels)
                except OSError:
                    return file.exists()
        return False


def list_entries(folder: Path) -> list[CacheEntry]:
    """List the entries of the cache in `folder`, the least recently used first."""
    groups: dict[str, list[Path]] = {}
    for file in folder.glob("*") if folder.is_dir() else ():
        if match := _ENTRY_NAME.fullmatch(file.name):
            groups.setdefault(match[1], []).append(file)
    roots = {name: _root_of(files) for name, files in groups.items()}
    scanned = {_hash_of(Path(root)): root for root in roots.values() if root}
    entries = []
    for name, files in groups.items():
        with suppress(OSError):  # Another process removes it.
            stats = [file.stat() for file in files]
            size, used = sum(each.st_size for each in stats), max(each.st_mtime for each in stats)
            entries.append(CacheEntry(tuple(files), size, used, roots[name] or scanned.get(name)))
    return sorted(entries, key=lambda entry: entry.used)


def _root_of(files: Sequence[Path]) -> str | None:
    """Return the folder that an entry of pixels stores."""
    if not any(file.suffix == ".npy" for file in files):
        return None
    for file in files:
        with suppress(OSError, ValueError, AttributeError):
            if file.suffix == ".json" and isinstance(root := json.loads(file.read_text()).get("root"), str):
                return root
    return None


def remove_entries(folder: Path, *, max_bytes: int = 0) -> list[CacheEntry]:
    """Remove entries of the cache, the least recently used first, until it has at most `max_bytes`.

    Entries that a process uses stay, whatever the size.

    Returns:
        The removed entries.
    """
    entries = list_entries(folder)
    size = sum(entry.size for entry in entries)
    removed = []
    for entry in entries:
        if size <= max_bytes:
            break
        if entry.remove():
            size -= entry.size
            removed.append(entry)
    return removed
