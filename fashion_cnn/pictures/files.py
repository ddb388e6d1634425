"""Which files a person means: a file, a folder, a glob or a list of these."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fashion_cnn.errors import UserError
from fashion_cnn.pictures.decoding import is_picture

# Names that say of a file that it is a picture: in a folder it is tried, whatever it holds.
SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".avif", ".tif", ".tiff", ".bmp", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".heic", ".heif"),
}


@dataclass(frozen=True)
class FoundPictures:
    """paths: in order, each once. left_out: files of folders and globs that neither are pictures nor are named so."""

    paths: tuple[Path, ...]
    left_out: int


def counts_as_picture(file: Path) -> bool:
    """Whether a file of a folder is a picture, or is named as one."""
    return file.suffix.lower() in SUFFIXES or is_picture(file)


def find_pictures(references: str | Sequence[str], *, option: str = "images") -> FoundPictures:
    """The files that `references` name; folders at any depth, hidden files left out.

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
    return FoundPictures(tuple(paths.values()), left_out)


def _expand(reference: str, option: str) -> FoundPictures:
    path = Path(reference).expanduser()
    if path.is_file():
        return FoundPictures((path,), 0)
    if path.is_dir():
        candidates, what = list(_files_in(path)), f"{reference} holds no picture"
    elif path.exists():
        raise UserError(f"{option}={reference} is neither a file nor a folder.")
    elif glob.has_magic(reference):
        # As in a shell; pathlib's takes hidden files too.
        matches = map(Path, sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207
        candidates = [file for match in matches for file in (_files_in(match) if match.is_dir() else [match])]
        what = f"{reference} matches no picture"
    else:
        raise UserError(f"{option}={reference} does not exist: give a file, a folder, a glob or a list of these.")
    pictures = tuple(filter(counts_as_picture, candidates))
    left_out = len(candidates) - len(pictures)
    if not pictures:
        others = {0: "no file at all", 1: "one file that is none"}.get(left_out, f"{left_out} files that are none")
        raise UserError(f"{what}, {others}: give a file, a folder, a glob or a list of these.")
    return FoundPictures(pictures, left_out)


def _files_in(folder: Path) -> Iterator[Path]:
    """The files below a folder, in order; pipes and devices, which could be waited for in vain, are none."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(parent, name)
            if not name.startswith(".") and file.is_file():
                yield file
