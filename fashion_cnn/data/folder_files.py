"""List the pictures of an image folder by class, check them, and split them into training, validation and test."""

import csv
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fashion_cnn.data.splits import derive_seed
from fashion_cnn.errors import UserError, missing_data_root, pluralize, printable
from fashion_cnn.pictures.files import SUFFIXES
from fashion_cnn.runs import write_atomically

_SPLITS = ("train", "val", "test")
GROUPS_FILE = "groups.csv"
# Longest list in a warning.
_MAX_LINES = 10


@dataclass(frozen=True)
class FolderFile:
    """A picture of an image folder.

    Attributes:
        path: path relative to the root.
        label: name of the class.
        split: the split whose folder holds it, or None.
        group: the group of pictures of the same item, from `groups.csv`, or None.
    """

    path: str
    label: str
    split: str | None
    group: str | None


def find_files(root: Path) -> tuple[FolderFile, ...]:
    """List the pictures below `root` in order; see `ImageFolderDataModule` for the layout.

    Raises:
        UserError: if the layout is another one, or there are fewer than two classes.
    """
    if not root.is_dir():
        raise missing_data_root(root)
    folders = _subfolders(root)
    splits = [split for split in _SPLITS if split in folders]
    groups = _read_groups(root / GROUPS_FILE)
    if not splits:
        files = _files_of(root, root, None, groups)
    elif "train" not in splits or set(folders) - set(_SPLITS):
        others = ", ".join(sorted(set(folders) - {"train"})[:5])
        raise UserError(
            f"{root} holds {others} and {'a' if 'train' in splits else 'no'} folder train: put the folders of the "
            "classes into train (and test, and val), or directly into it."
        )
    else:
        files = [file for split in splits for file in _files_of(root, root / split, split, groups)]
    if unknown := groups.keys() - {file.path for file in files}:
        raise UserError(
            f"{root / GROUPS_FILE} names {len(unknown)} files that are no pictures of a class in {root}, such as "
            f"{min(unknown)}: give their paths below that folder."
        )
    classes = sorted({file.label for file in files})
    if len(classes) < 2:
        is_loose = any(path.suffix.lower() in SUFFIXES for path in root.iterdir())
        raise UserError(
            f"{root} holds pictures of {len(classes)} classes{': ' + classes[0] if classes else ''}: two or more are "
            f"needed, each in a sub-folder{'; pictures outside sub-folders have no class' if is_loose else ''}."
        )
    trained = {file.label for file in files if file.split in (None, "train")}
    if missing := [name for name in classes if name not in trained]:
        raise UserError(f"{root / 'train'} holds no picture of the class {missing[0]}, which another split has.")
    return tuple(files)


def _files_of(root: Path, folder: Path, split: str | None, groups: dict[str, str]) -> list[FolderFile]:
    suffixes = tuple(SUFFIXES)
    files = []
    for label in _subfolders(folder):
        paths: list[str] = []
        for parent, subfolders, names in os.walk(folder / label, onerror=_raise):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            below = Path(parent).relative_to(root).as_posix()
            paths += [f"{below}/{name}" for name in names if name.lower().endswith(suffixes) and name[0] != "."]
        # Compares folder by folder, so that characters below "/" in names do not matter.
        paths.sort(key=lambda path: path.split("/"))
        files += [FolderFile(path, label, split, groups.get(path)) for path in paths]
    return files


def _raise(error: OSError) -> None:
    """Report a folder that cannot be read, which `os.walk` skips by default."""
    raise error


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_groups(path: Path) -> dict[str, str]:
    """Return the group of each file that has one."""
    if not path.exists():
        return {}
    if not path.is_file():
        raise UserError(f"{path} is not a regular file: write a table with the columns file and group.")
    try:
        # Spreadsheets write a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"file", "group"} <= set(rows.fieldnames or ()):
                raise UserError(f"{path} has the columns {', '.join(rows.fieldnames or ())}: it needs file and group.")
            groups = {row["file"]: row["group"] for row in rows if row["file"] and row["group"]}
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"{path} is no table ({error}): write one with the columns file and group.") from error
    return {Path(name).as_posix(): group for name, group in groups.items()}


def item_ids(files: Sequence[FolderFile], contents: Sequence[str]) -> list[int]:
    """Number the items that the pictures show.

    Pictures of one group, and copies with the same content, show the same item.

    Args:
        files: the pictures.
        contents: a hash of each picture's content.

    Returns:
        For each picture the position of the first picture of the same item.
    """
    parents = list(range(len(files)))

    def root(position: int) -> int:
        while parents[position] != position:
            position = parents[position]
        return position

    first: dict[tuple[str, str], int] = {}
    for position, (file, content) in enumerate(zip(files, contents, strict=True)):
        for kind, name in (("group", file.group), ("content", content)):
            if name is not None:
                # The earlier picture becomes the parent.
                parent, child = sorted((root(first.setdefault((kind, name), position)), root(position)))
                parents[child] = parent
    return [root(position) for position in range(len(files))]


def split_files(
    files: Sequence[FolderFile], items: Sequence[int], *, val_share: float, test_share: float, seed: int
) -> list[str]:
    """Choose the split of each file, `train`, `val` or `test`: that of its folder, else a random one.

    A random split takes its share of the pictures of each class, or more where the last item has several pictures, and
    at least one if the class has two items. The pictures of an item stay together, and count for the class of the
    first.

    Args:
        files: the pictures.
        items: the item that each picture shows, see `item_ids`.
        val_share: fraction of the pictures for validation if no folder `val` holds some.
        test_share: fraction of the pictures for testing if no folder `test` holds some.
        seed: seed of the random choice.

    Returns:
        The split of each file, in the order of `files`.
    """
    splits = [file.split or "train" for file in files]
    for name, share in (("test", test_share), ("val", val_share)):
        if not any(file.split == name for file in files):
            _draw(files, items, splits, name, share, seed)
    return splits


def _draw(
    files: Sequence[FolderFile], items: Sequence[int], splits: list[str], name: str, share: float, seed: int
) -> None:
    """Move a share of the training files of each class to the split `name`."""
    groups: dict[int, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        if splits[position] == "train":
            groups[item].append(position)
    # The share is of all pictures whose split is random, including those that were drawn before.
    sizes = Counter(file.label for file in files if file.split in (None, "train"))
    by_class: dict[str, list[list[int]]] = defaultdict(list)
    for members in groups.values():
        by_class[files[members[0]].label].append(members)
    for label, candidates in by_class.items():
        remaining = max(round(share * sizes[label]), 1) if share else 0
        generator = torch.Generator().manual_seed(derive_seed(f"{name} of {label}", seed))
        # The last group stays in training, so that the class can be learned.
        for index in torch.randperm(len(candidates), generator=generator).tolist()[:-1]:
            if remaining <= 0:
                break
            remaining -= len(candidates[index])
            for position in candidates[index]:
                splits[position] = name


def warn_unreadable(root: Path, paths: Sequence[str], unreadable: Mapping[int, str], list_file: Path) -> None:
    """Print which pictures are left out, and why.

    Args:
        root: the folder of the pictures.
        paths: paths of all pictures, relative to `root`.
        unreadable: the reason of each unreadable picture by its position in `paths`.
        list_file: file to which all reasons are written.
    """
    if not unreadable:
        return
    reasons = [f"{paths[position]}: {reason}" for position, reason in sorted(unreadable.items())]
    write_atomically(list_file, "\n".join(reasons) + "\n")
    _warn(f"{len(reasons)} of {len(paths)} files in {root} are left out", reasons, f", all in {list_file}")


def warn_shared(files: Sequence[FolderFile], items: Sequence[int], splits: Sequence[str]) -> None:
    """Print which items are in several splits: the network would be evaluated on items that it was trained on."""
    shared = _in_several(files, items, splits)
    _warn(f"In more than one of train, val and test: {pluralize(len(shared), 'picture')}", shared)


def warn_contradicting(files: Sequence[FolderFile], contents: Sequence[str]) -> None:
    """Print which pictures have copies in several classes, of which at most one is right."""
    contradicting = _in_several(files, contents, [file.label for file in files])
    _warn(f"In more than one class: {pluralize(len(contradicting), 'picture')}", contradicting)


def _in_several(files: Sequence[FolderFile], keys: Sequence[object], places: Sequence[str]) -> list[str]:
    """List the files of equal keys in different places, one path per place."""
    first: dict[object, dict[str, str]] = defaultdict(dict)
    for file, key, place in zip(files, keys, places, strict=True):
        first[key].setdefault(place, file.path)
    return [" = ".join(by_place.values()) for by_place in first.values() if len(by_place) > 1]


def _warn(heading: str, lines: Sequence[str], location: str = "") -> None:
    if not lines:
        return
    print(f"{heading}:", file=sys.stderr)
    for line in lines[:_MAX_LINES]:
        print(f"  {printable(line)}", file=sys.stderr)
    if len(lines) > _MAX_LINES:
        print(f"  … and {len(lines) - _MAX_LINES} more{location}", file=sys.stderr)
