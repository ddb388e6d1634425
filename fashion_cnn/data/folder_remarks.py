"""What a person should know of the pictures in a folder before training on them: on standard error, a few by name."""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from fashion_cnn.data.folder_files import FolderFile
from fashion_cnn.numbers import counted

_NAMED = 10


def tell_unreadable(root: Path, paths: Sequence[str], unreadable: Mapping[int, str], listing: Path) -> None:
    """Say which pictures are left out, and why: the reason by the position of the path. listing: a file for all."""
    if not unreadable:
        return
    reasons = [f"{paths[place]}: {reason}" for place, reason in sorted(unreadable.items())]
    listing.write_text("\n".join(reasons) + "\n")
    _tell(f"{len(reasons)} of {len(paths)} files in {root} are left out", reasons, f", all in {listing}")


def tell_shared(files: Sequence[FolderFile], things: Sequence[int], splits: Sequence[str]) -> None:
    """Say what stands in two splits, a picture or pictures of one group: what is measured on it was trained on."""
    shared = _in_several(files, things, splits)
    _tell(f"In more than one of train, val and test: {counted(len(shared), 'picture')}", shared)


def tell_contradicting(files: Sequence[FolderFile], contents: Sequence[str]) -> None:
    """Say which pictures stand in two classes: one of them at least is wrong."""
    contradicting = _in_several(files, contents, [file.label for file in files])
    _tell(f"In more than one class: {counted(len(contradicting), 'picture')}", contradicting)


def _in_several(files: Sequence[FolderFile], alike: Sequence[object], places: Sequence[str]) -> list[str]:
    """Of files that are alike and stand in different places: the first of each place, for all that are alike."""
    first: dict[object, dict[str, str]] = defaultdict(dict)
    for file, one, place in zip(files, alike, places, strict=True):
        first[one].setdefault(place, file.path)
    return [" = ".join(by_place.values()) for by_place in first.values() if len(by_place) > 1]


def _tell(heading: str, lines: Sequence[str], where: str = "") -> None:
    if not lines:
        return
    print(f"{heading}:", file=sys.stderr)
    for line in lines[:_NAMED]:
        print(f"  {line}", file=sys.stderr)
    if len(lines) > _NAMED:
        print(f"  … and {len(lines) - _NAMED} more{where}", file=sys.stderr)
