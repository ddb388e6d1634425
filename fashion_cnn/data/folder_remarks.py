"""What a person should know of the pictures in a folder before training on them: on standard error, a few by name."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fashion_cnn.data.folder_files import FolderFile
from fashion_cnn.numbers import counted

_NAMED = 10


def tell_unreadable(root: Path, paths: Sequence[str], unreadable: Mapping[int, str]) -> None:
    """Say which pictures are left out, and why: the reason by the position of the path."""
    reasons = [f"{paths[place]}: {reason}" for place, reason in sorted(unreadable.items())]
    _tell(f"{len(reasons)} of {len(paths)} files in {root} are left out:", reasons)


def tell_shared(files: Sequence[FolderFile], contents: Sequence[str], members: Mapping[str, Tensor]) -> None:
    """Say which pictures stand in two splits: what is measured on them was trained on.

    contents: what tells the content of each file. members: by split, the positions of its files.
    """
    placed = (
        (contents[place], split, files[place].path) for split, places in members.items() for place in places.tolist()
    )
    shared = _in_several(placed)
    _tell(f"In more than one of train, val and test: {counted(len(shared), 'picture')}", shared)


def tell_contradicting(files: Sequence[FolderFile], contents: Sequence[str]) -> None:
    """Say which pictures stand in two classes: one of them at least is wrong."""
    placed = ((content, file.label, file.path) for content, file in zip(contents, files, strict=True))
    contradicting = _in_several(placed)
    _tell(f"In more than one class: {counted(len(contradicting), 'picture')}", contradicting)


def _in_several(placed: Iterable[tuple[str, str, str]]) -> list[str]:
    """Of (content, where, path): for each content that is in several places, a path in each of them."""
    paths: dict[str, dict[str, str]] = {}
    for content, where, path in placed:
        paths.setdefault(content, {}).setdefault(where, path)
    return [" = ".join(by_place.values()) for by_place in paths.values() if len(by_place) > 1]


def _tell(heading: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    print(heading, file=sys.stderr)
    for line in lines[:_NAMED]:
        print(f"  {line}", file=sys.stderr)
    if len(lines) > _NAMED:
        print(f"  … and {len(lines) - _NAMED} more", file=sys.stderr)
