"""Find the picture files that a path, a glob or a list names, and read them with threads."""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from fashion_cnn.errors import UserError, pluralize
from fashion_cnn.pictures.decoding import UnreadablePictureError, decode, is_picture

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from torch import Tensor

    from fashion_cnn.pictures.preparation import Preparation

# A file with one of these names in a folder is read, whatever it holds; an error then reports that it is not a picture.
SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".avif", ".tif", ".tiff", ".bmp", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".heic", ".heif"),
}
# Items submitted ahead of the consumer: enough to keep the threads busy while a network processes a batch.
_AHEAD = 1024
_REMEDY = "give a file, a folder, a glob or a list of these"
Item = TypeVar("Item")
Result = TypeVar("Result")
# Positions in the pattern at which a folder, given by device and inode number, was searched.
Visited: TypeAlias = "dict[tuple[int, int], set[int]]"


@dataclass(frozen=True)
class PictureFiles:
    """The files that a command line names.

    Attributes:
        paths: in order, without repetition. An unreadable folder is listed itself, so that reading it reports the
            error.
        skipped: number of files in folders and globs that are neither pictures nor named like one.
    """

    paths: tuple[Path, ...]
    skipped: int


def is_picture_file(file: Path) -> bool:
    """Return whether a file in a folder is read as a picture: by its name, or by its header."""
    return file.suffix.lower() in SUFFIXES or is_picture(file)


def find_pictures(references: str | Sequence[str], *, option: str = "images") -> PictureFiles:
    """Find the picture files that `references` name.

    Args:
        references: files, which are always included; folders, searched at any depth without hidden files; globs.
        option: the name of the option in error messages.

    Raises:
        UserError: if a reference names no picture.
    """
    paths: dict[Path, Path] = {}
    skipped = 0
    for reference in [references] if isinstance(references, str) else references:
        files = _expand(reference, option)
        for path in files.paths:
            paths.setdefault(path.absolute(), path)
        skipped += files.skipped
    if not paths:
        raise UserError(f"{option}=[] names no picture: {_REMEDY}.")
    return PictureFiles(tuple(paths.values()), skipped)


def _expand(reference: str, option: str) -> PictureFiles:
    path = Path(reference).expanduser()
    unreadable: list[Path] = []
    if path.is_file():
        return PictureFiles((path,), 0)
    if path.is_dir():
        candidates, problem = list(_files_in(path, unreadable)), f"{reference} holds no picture"
    elif path.exists():
        raise UserError(f"{option}={reference} is neither a file nor a folder.")
    elif glob.has_magic(reference):
        candidates, problem = list(_matching_files(path, unreadable)), f"{reference} matches no picture"
    else:
        raise UserError(f"{option}={reference} does not exist: {_REMEDY}.")
    pictures = tuple(filter(is_picture_file, candidates))
    skipped = len(candidates) - len(pictures)
    if not pictures and not unreadable:
        raise UserError(f"{problem} ({pluralize(skipped, 'other file')}): {_REMEDY}.")
    return PictureFiles((*pictures, *unreadable), skipped)


def _matching_files(pattern: Path, unreadable: list[Path]) -> Iterator[Path]:
    """Yield the files that match a glob, and those below folders that match; hidden ones as in a shell."""
    start = pattern.parts.index("**") if "**" in pattern.parts else len(pattern.parts)
    # Skips hidden files like a shell, unlike pathlib's glob.
    matches = map(Path, sorted(glob.glob(str(Path(*pattern.parts[:start])))))  # noqa: PTH207
    if start == len(pattern.parts):
        for match in matches:
            yield from _files_in(match, unreadable) if match.is_dir() else filter(_is_file, [match])
        return
    # `glob` follows links at any depth, which never ends if two of them lead upwards.
    visited: Visited = {}
    folders = filter(Path.is_dir, matches)
    yield from sorted(
        chain.from_iterable(_files_in(folder, unreadable, pattern.parts[start:], visited) for folder in folders)
    )


def _files_in(
    folder: Path, unreadable: list[Path], pattern: Sequence[str] = (), visited: Visited | None = None
) -> Iterator[Path]:
    """Yield the files below a folder in order, and append folders that cannot be read to `unreadable`.

    Args:
        folder: where to begin.
        unreadable: folders that cannot be read are appended.
        pattern: parts of a glob relative to the folder. A folder that matches gives all files below it.
        visited: folders whose files were given already, with the positions in the pattern.
    """
    visited = {} if visited is None else visited
    positions = {str(folder): _skip_any_depth({0}, pattern)}
    for parent, folders, names in os.walk(
        folder, onerror=lambda error: unreadable.append(Path(error.filename)), followlinks=True
    ):
        # Links may form a cycle, or lead to the same folder.
        status = Path(parent).stat()
        seen = visited.setdefault((status.st_dev, status.st_ino), set())
        here = positions.pop(parent) - seen
        seen |= here
        below = {name: matched for name in sorted(folders) if (matched := _match(name, pattern, here))}
        folders[:] = below
        positions |= {os.path.join(parent, name): matched for name, matched in below.items()}  # noqa: PTH118
        for name in sorted(names):
            file = Path(parent, name)
            if len(pattern) in _match(name, pattern, here) and _is_file(file):
                yield file


def _match(name: str, pattern: Sequence[str], positions: set[int]) -> set[int]:
    """Return the positions in a pattern after a name that is found at any of these positions."""
    after = set()
    for position in positions:
        part = "**" if position == len(pattern) else pattern[position]
        if name.startswith(".") and not part.startswith("."):
            continue
        if part == "**":
            after.add(position)
        elif fnmatch.fnmatch(name, part):
            after.add(position + 1)
    return _skip_any_depth(after, pattern)


def _skip_any_depth(positions: set[int], pattern: Sequence[str]) -> set[int]:
    """Add the positions after each `**`, which also matches no folder at all."""
    for position, part in enumerate(pattern):
        if part == "**" and position in positions:
            positions.add(position + 1)
    return positions


def _is_file(path: Path) -> bool:
    """Return whether the path is a regular file; reading a pipe or device could block."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except PermissionError:  # Reading the file reports it.
        return True
    except OSError:
        return False


def read_pictures(
    paths: Iterable[Path], preparation: Preparation
) -> Generator[tuple[Path, Tensor | UnreadablePictureError]]:
    """Yield each path with its prepared picture `(C, H, W)` uint8, or with the error, in the given order."""

    def read(path: Path) -> Tensor | UnreadablePictureError:
        try:
            return preparation(decode(path, min_pixels=preparation.min_pixels))
        except UnreadablePictureError as error:
            return error

    return read_ahead(paths, read)


def read_ahead(items: Iterable[Item], read: Callable[[Item], Result]) -> Generator[tuple[Item, Result]]:
    """Yield each item with `read(item)` in the given order; threads work ahead of the consumer."""
    # Pillow releases the global interpreter lock while it decodes and resizes.
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
    try:
        remaining = iter(items)
        pending: deque[tuple[Item, Future[Result]]] = deque()
        pending.extend((item, pool.submit(read, item)) for item in islice(remaining, _AHEAD))
        while pending:
            item, future = pending.popleft()
            yield item, future.result()
            pending.extend((item, pool.submit(read, item)) for item in islice(remaining, 1))
    finally:
        pool.shutdown(cancel_futures=True)
