"""Picture files: those that a path, a glob or a list names, read by threads that decode ahead."""

import glob
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.pictures.decoding import UnreadablePictureError, decode, is_picture
from fashion_cnn.pictures.preparation import Preparation

# Names that say of a file that it is a picture: in a folder it is tried, whatever it holds.
SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".avif", ".tif", ".tiff", ".bmp", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".heic", ".heif"),
}
# Enough that the threads have work while a network looks at a batch.
_AHEAD = 1024
Read = Tensor | UnreadablePictureError
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PictureFiles:
    """paths: in order, each once; of a folder that cannot be looked into its own, which reading will tell of. left_out:
    files of folders and globs that neither are pictures nor are named so.
    """

    paths: tuple[Path, ...]
    left_out: int


def is_picture_file(file: Path) -> bool:
    """Whether a file of a folder is a picture, or is named as one."""
    return file.suffix.lower() in SUFFIXES or is_picture(file)


def find_pictures(references: str | Sequence[str], *, option: str = "images") -> PictureFiles:
    """The files that `references` name; folders at any depth, linked ones too, hidden files left out.

    A file that is named itself is always among them. option: what they were given as. Raises UserError where a
    reference names nothing.
    """
    paths: dict[Path, Path] = {}
    left_out = 0
    for reference in [references] if isinstance(references, str) else references:
        found = _expand(reference, option)
        for path in found.paths:
            paths.setdefault(path.absolute(), path)
        left_out += found.left_out
    if not paths:
        raise UserError(f"{option}=[] names no picture: give a file, a folder, a glob or a list of these.")
    return PictureFiles(tuple(paths.values()), left_out)


def _expand(reference: str, option: str) -> PictureFiles:
    path = Path(reference).expanduser()
    refused: list[Path] = []
    if path.is_file():
        return PictureFiles((path,), 0)
    if path.is_dir():
        candidates, what = list(_files_in(path, refused.append)), f"{reference} holds no picture"
    elif path.exists():
        raise UserError(f"{option}={reference} is neither a file nor a folder.")
    elif glob.has_magic(reference):
        # As in a shell; pathlib's takes hidden files too.
        matches = map(Path, sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207
        inside = (_files_in(match, refused.append) if match.is_dir() else [match] for match in matches)
        candidates = list(chain.from_iterable(inside))
        what = f"{reference} matches no picture"
    else:
        raise UserError(f"{option}={reference} does not exist: give a file, a folder, a glob or a list of these.")
    pictures = tuple(filter(is_picture_file, candidates))
    left_out = len(candidates) - len(pictures)
    if not pictures and not refused:
        others = {0: "no file at all", 1: "one file that is none"}.get(left_out, f"{left_out} files that are none")
        raise UserError(f"{what}, {others}: give a file, a folder, a glob or a list of these.")
    return PictureFiles((*pictures, *refused), left_out)


def _files_in(folder: Path, refused: Callable[[Path], None]) -> Iterator[Path]:
    """The files below a folder, in order. Called with a folder that cannot be looked into: `refused`."""
    entered = set()
    for parent, folders, names in os.walk(
        folder, onerror=lambda error: refused(Path(error.filename)), followlinks=True
    ):
        # A link may lead back to where it lies, or to where another one does.
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(parent, name)
            if not name.startswith(".") and _is_file(file):
                yield file


def _is_file(path: Path) -> bool:
    """Whether it is a file, as far as can be told; pipes and devices, which could be waited for in vain, are none."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except PermissionError:  # which reading it will tell
        return True
    except OSError:
        return False


def read_pictures(paths: Iterable[Path], preparation: Preparation) -> Generator[tuple[Path, Read]]:
    """Each file with its prepared picture `(C, H, W)` uint8, or with the reason why it has none, in the given order."""

    def read(path: Path) -> Read:
        try:
            return preparation(decode(path, enough=preparation.enough))
        except UnreadablePictureError as error:
            return error

    return read_ahead(paths, read)


def read_ahead(items: Iterable[Item], read: Callable[[Item], Result]) -> Generator[tuple[Item, Result]]:
    """Each item with what `read` makes of it, in the given order; threads do so ahead of whoever takes them."""
    # Pillow decodes and scales without holding Python's lock.
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
    try:
        left = iter(items)
        ahead: deque[tuple[Item, Future[Result]]] = deque()
        ahead.extend((item, pool.submit(read, item)) for item in islice(left, _AHEAD))
        while ahead:
            item, future = ahead.popleft()
            yield item, future.result()
            ahead.extend((item, pool.submit(read, item)) for item in islice(left, 1))
    finally:
        pool.shutdown(cancel_futures=True)
