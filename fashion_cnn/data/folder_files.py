"""Pictures of an image folder: listed by class, split into training, validation and test, and checked."""

import csv
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fashion_cnn.data.splits import derive_seed
from fashion_cnn.errors import UserError, pluralize
from fashion_cnn.pictures.files import SUFFIXES

_ENDINGS = tuple(SUFFIXES)
_SPLITS = ("train", "val", "test")
GROUPS_FILE = "groups.csv"
_MOST_NAMED = 10


@dataclass(frozen=True)
class FolderFile:
    """A picture: its path below the root, its class, and if any the split that its place says and the group of pictures
    of one thing that it is in.
    """

    path: str
    label: str
    split: str | None
    group: str | None


def find_files(root: Path) -> tuple[FolderFile, ...]:
    """All pictures below `root`, in order.

    `root/<class>/…`, or `root/train/<class>/…` with `root/test/<class>/…` and perhaps `root/val/<class>/…`. A file
    `groups.csv` (columns file and group) says which pictures are of the same thing. Raises UserError where there are
    fewer than two classes, or the layout is neither of these.
    """
    if not root.is_dir():
        raise UserError(f"data.root={root} is no folder: give one with a sub-folder of pictures for each class.")
    folders = _folders(root)
    there = [split for split in _SPLITS if split in folders]
    groups = _groups(root / GROUPS_FILE)
    if not there:
        files = _files_of(root, root, None, groups)
    elif "train" not in there or set(folders) - set(_SPLITS):
        others = ", ".join(sorted(set(folders) - {"train"})[:5])
        raise UserError(
            f"{root} holds {others} and {'a' if 'train' in there else 'no'} folder train: put a folder for each class "
            "into train (and test, and val), or the classes alone into it."
        )
    else:
        files = [file for split in there for file in _files_of(root, root / split, split, groups)]
    if lost := groups.keys() - {file.path for file in files}:
        raise UserError(
            f"{root / GROUPS_FILE} names {len(lost)} files that are no pictures of a class in {root}, such as "
            f"{min(lost)}: give their paths below that folder."
        )
    classes = sorted({file.label for file in files})
    if len(classes) < 2:
        loose = any(path.suffix.lower() in SUFFIXES for path in root.iterdir())
        raise UserError(
            f"{root} holds pictures of {len(classes)} classes{': ' + classes[0] if classes else ''}: two or more are "
            f"needed, a sub-folder each{'; pictures beside the sub-folders are of no class' if loose else ''}."
        )
    trained = {file.label for file in files if file.split in (None, "train")}
    if missing := [name for name in classes if name not in trained]:
        raise UserError(f"{root / 'train'} holds no picture of the class {missing[0]}, which another split has.")
    return tuple(files)


def _files_of(root: Path, folder: Path, split: str | None, groups: dict[str, str]) -> list[FolderFile]:
    files = []
    for label in _folders(folder):
        names: list[str] = []
        for parent, folders, found in os.walk(folder / label, onerror=_refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = Path(parent).relative_to(root).as_posix()
            names += [f"{below}/{name}" for name in found if name.lower().endswith(_ENDINGS) and name[0] != "."]
        # In the order of paths, whatever the characters that a folder's name goes on with.
        names.sort(key=lambda name: name.split("/"))
        files += [FolderFile(name, label, split, groups.get(name)) for name in names]
    return files


def _refuse(error: OSError) -> None:
    """Of a folder that cannot be read `os.walk` would say nothing."""
    raise error


def _folders(folder: Path) -> Sequence[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _groups(path: Path) -> dict[str, str]:
    """The group of each file that is in one."""
    if not path.exists():
        return {}
    try:
        # Spreadsheets put a mark before the text.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"file", "group"} <= set(rows.fieldnames or ()):
                raise UserError(f"{path} has the columns {', '.join(rows.fieldnames or ())}: it needs file and group.")
            groups = {row["file"]: row["group"] for row in rows if row["group"]}
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8.") from error
    return {Path(name).as_posix(): group for name, group in groups.items()}


def things_shown(files: Sequence[FolderFile], contents: Sequence[str]) -> list[int]:
    """The thing that each picture shows, as the number of the first that shows it: pictures of one group or of one
    content, which copies have, show the same.
    """
    things = list(range(len(files)))

    def first(place: int) -> int:
        while things[place] != place:
            place = things[place]
        return place

    known: dict[tuple[str, str], int] = {}
    for place, (file, content) in enumerate(zip(files, contents, strict=True)):
        for kind, name in (("group", file.group), ("content", content)):
            if name is not None:
                # The earlier of the two stands for both.
                one, other = sorted((first(known.setdefault((kind, name), place)), first(place)))
                things[other] = one
    return [first(place) for place in range(len(files))]


def split_files(
    files: Sequence[FolderFile], things: Sequence[int], *, val_share: float, test_share: float, seed: int
) -> list[str]:
    """train, val or test for each file: as its folder says, else drawn, class by class and thing by thing.

    Each class gives up the share of its pictures, at least one where it has two, and no fewer because a group is large:
    the pictures of a thing go together, with the class of the first.
    """
    splits = [file.split or "train" for file in files]
    for name, share in (("test", test_share), ("val", val_share)):
        if not any(file.split == name for file in files):
            _draw(files, things, splits, name, share, seed)
    return splits


def _draw(
    files: Sequence[FolderFile], things: Sequence[int], splits: list[str], name: str, share: float, seed: int
) -> None:
    """Move so many of the files that train to another split."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place, thing in enumerate(things):
        if splits[place] == "train":
            groups[thing].append(place)
    # Of the pictures that no folder gives to another split, those that were drawn before among them.
    sizes = Counter(file.label for file in files if file.split in (None, "train"))
    by_class: dict[str, list[list[int]]] = defaultdict(list)
    for members in groups.values():
        by_class[files[members[0]].label].append(members)
    for label, candidates in by_class.items():
        wanted = max(round(share * sizes[label]), 1) if share else 0
        generator = torch.Generator().manual_seed(derive_seed(f"{name} of {label}", seed))
        # The last group stays, so that there is something to learn the class from.
        for index in torch.randperm(len(candidates), generator=generator).tolist()[:-1]:
            if wanted <= 0:
                break
            wanted -= len(candidates[index])
            for place in candidates[index]:
                splits[place] = name


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
    _tell(f"In more than one of train, val and test: {pluralize(len(shared), 'picture')}", shared)


def tell_contradicting(files: Sequence[FolderFile], contents: Sequence[str]) -> None:
    """Say which pictures stand in two classes: one of them at least is wrong."""
    contradicting = _in_several(files, contents, [file.label for file in files])
    _tell(f"In more than one class: {pluralize(len(contradicting), 'picture')}", contradicting)


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
    for line in lines[:_MOST_NAMED]:
        print(f"  {line}", file=sys.stderr)
    if len(lines) > _MOST_NAMED:
        print(f"  … and {len(lines) - _MOST_NAMED} more{where}", file=sys.stderr)
