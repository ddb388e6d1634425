"""Which pictures a folder holds for training, validation and test: a sub-folder a class."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fashion_cnn.errors import UserError
from fashion_cnn.pictures.files import SUFFIXES

_ENDINGS = tuple(SUFFIXES)
_SPLITS = ("train", "val", "test")
GROUPS_FILE = "groups.csv"


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
