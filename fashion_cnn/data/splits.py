"""Selections from a labelled data set: random streams, stratified orders, left-out classes, corrections from files.

Corrections are CSV tables of positions in the data set, those in the columns `indices` of `examples.csv` and `index` of
the tables of `python -m fashion_cnn.memorisation`. They change the training images alone: validation images stay, with
the labels of the data set, since a set without its difficult images would flatter every network.
"""

import csv
import hashlib
import io
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fashion_cnn.errors import UserError, printable
from fashion_cnn.runs.damage import read_regular

# Digits of the SHA-256 of a file that a run records.
_HASH_DIGITS = 16
_MAX_TABLE_BYTES = 100_000_000
_MAX_SHOWN = 40


def derive_seed(*parts: str | int) -> int:
    """Return a 63-bit seed that depends on all `parts`, such as a purpose, the run's seed and the epoch.

    It is the same in every process and Python version; neighbouring seeds give unrelated streams.
    """
    return random.Random("/".join(map(str, parts))).getrandbits(63)


def stratified_order(targets: Tensor, seed: int) -> Tensor:
    """Return a random order in which every prefix holds the classes in their true proportions.

    Each class is shuffled, then the classes are interleaved. A longer prefix contains every shorter one, so that the
    training sets of a learning curve are nested.

    Args:
        targets: `(N,)` int64 class indices.
        seed: seed of the order.

    Returns:
        A permutation `(N,)` of the positions.
    """
    generator = torch.Generator().manual_seed(derive_seed("split", seed))
    order = torch.randperm(len(targets), generator=generator)
    shuffled = targets[order]
    place = torch.empty(len(targets), dtype=torch.float64)
    for label in targets.unique():
        members = (shuffled == label).nonzero().squeeze(1)
        # The k-th of the n members goes to (k + 1/2) / n of the way: any prefix takes its share of each class.
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[place.argsort(stable=True)]


def left_out_labels(left_out: Collection[str | int], class_names: Sequence[str]) -> list[int]:
    """Return the labels of the classes to leave out in ascending order.

    Args:
        left_out: names of classes, or their labels.
        class_names: all names, in the order of the labels.

    Raises:
        UserError: if there is no such class, or fewer than two classes remain.
    """
    labels = sorted({_label(name_or_label, class_names) for name_or_label in left_out})
    remaining = len(class_names) - len(labels)
    if labels and remaining < 2:
        raise UserError(
            f"data.left_out={list(left_out)} leaves {remaining} of the {len(class_names)} classes: keep two or more."
        )
    return labels


def _label(name_or_label: str | int, class_names: Sequence[str]) -> int:
    if name_or_label in class_names:
        return class_names.index(str(name_or_label))
    if isinstance(name_or_label, int) and 0 <= name_or_label < len(class_names):
        return name_or_label
    choices = ", ".join(f"{label} {name}" for label, name in enumerate(class_names))
    raise UserError(f"data.left_out={name_or_label} is no class: give numbers or names of {choices}.")


def renumber(targets: Tensor, left_out: Collection[int], num_classes: int) -> Tensor:
    """Renumber the labels of the classes that are not left out from 0, in their order.

    Args:
        targets: `(N,)` int64 labels of the data set.
        left_out: labels of the classes that are left out.
        num_classes: number of the other classes.

    Returns:
        `(N,)` int64 labels, -1 for the classes that are left out.
    """
    numbers = torch.full((num_classes + len(left_out),), -1)
    numbers[[label for label in range(len(numbers)) if label not in left_out]] = torch.arange(num_classes)
    return numbers[targets]


@dataclass(frozen=True)
class Correction:
    """A file of corrections, read once: its hash is that of the table that is used.

    Attributes:
        option: the option that names it, such as `data.exclude=bad.csv`, for messages.
        content: what it holds.
    """

    option: str
    content: bytes

    @classmethod
    def read(cls, name: str, path: Path) -> "Correction":
        """Read the file of the option `name`, such as `data.exclude`. Raises UserError if it cannot be read."""
        try:
            return cls(f"{name}={path}", read_regular(path, _MAX_TABLE_BYTES))
        except FileNotFoundError as error:
            reason = error.strerror
        except ValueError as error:
            reason = str(error)
        raise UserError(f"{name}: {path} cannot be read ({reason}): give a CSV file of positions, or null.")

    @property
    def sha256(self) -> str:
        """The first 16 digits of its SHA-256."""
        return hashlib.sha256(self.content).hexdigest()[:_HASH_DIGITS]


def read_exclusions(file: Correction, is_training: Tensor) -> Tensor:
    """Read the positions of the images to leave out.

    Args:
        file: CSV table with the column `index`, or whose first column holds positions.
        is_training: `(M,)` bool, for each position of the data set whether it is a training or validation image.

    Returns:
        The positions `(N,)`.

    Raises:
        UserError: if the table is damaged, or has a position twice, or one that is no training image.
    """
    rows = _rows(file, ("index",), len(is_training))
    return _positions(file.option, [(line, index) for line, (index,) in rows], is_training)


def read_labels(file: Correction, is_training: Tensor, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Read new labels of images.

    Args:
        file: CSV table with the columns `index` and `label`, a name or a number from 0, or with these two alone.
        is_training: as for `read_exclusions`.
        class_names: all classes of the data set.

    Returns:
        The positions `(N,)` and the labels `(N,)`.

    Raises:
        UserError: as for `read_exclusions`, or if a label is no class.
    """
    rows = _rows(file, ("index", "label"), len(is_training))
    positions = _positions(file.option, [(line, index) for line, (index, _) in rows], is_training)
    return positions, torch.tensor([_new_label(file.option, line, label, class_names) for line, (_, label) in rows])


def _rows(file: Correction, columns: Sequence[str], images: int) -> list[tuple[int, list[str]]]:
    """Return the number of the line and the cells of the columns of each row, of which each image has at most one."""
    option, table = file.option, []
    try:
        for line, row in enumerate(csv.reader(io.StringIO(file.content.decode(), newline="")), 1):
            if row:
                table.append((line, row))
            # One more is the heading.
            if len(table) > images + 1:
                raise UserError(f"{option} has more rows than there are images, {images:,}: give each image once.")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{option} is no CSV file ({printable(str(error))}): give a table of positions.") from error
    places = range(len(columns))
    if table and not table[0][1][0].strip().isdigit():
        _, heading = table.pop(0)
        names = [cell.strip() for cell in heading]
        if missing := [column for column in columns if column not in names]:
            raise UserError(f"{option} has no column {missing[0]}: it has {_shown(', '.join(names))}.")
        places = [names.index(column) for column in columns]  # type: ignore[assignment]
    if not table:
        raise UserError(f"{option} names no image: give a row for each, or null.")
    for line, row in table:
        if len(row) <= max(places):
            raise UserError(f"{option}, line {line}: {_shown(','.join(row))} has no {columns[len(row)]}.")
    return [(line, [row[place].strip() for place in places]) for line, row in table]


def _positions(option: str, rows: Sequence[tuple[int, str]], is_training: Tensor) -> Tensor:
    seen: dict[int, int] = {}
    for line, text in rows:
        if not text.isdecimal():
            raise UserError(f"{option}, line {line}: {_shown(text)} is no position: give 0 to {len(is_training) - 1}.")
        # Python converts no number of thousands of digits.
        position = int(text) if len(text) <= _MAX_SHOWN else len(is_training)
        if position >= len(is_training):
            raise UserError(
                f"{option}, line {line}: there is no image {_shown(text)}: positions are 0 to {len(is_training) - 1}."
            )
        if not is_training[position]:
            raise UserError(
                f"{option}, line {line}: image {position} is a test image, which no training may choose or change."
            )
        if position in seen:
            raise UserError(f"{option}, line {line}: image {position} is in line {seen[position]} too: give it once.")
        seen[position] = line
    return torch.tensor([*seen])


def _new_label(option: str, line: int, text: str, class_names: Sequence[str]) -> int:
    if text in class_names:
        return class_names.index(text)
    if text.isdecimal() and len(text) <= _MAX_SHOWN and int(text) < len(class_names):
        return int(text)
    choices = ", ".join(f"{label} {name}" for label, name in enumerate(class_names))
    raise UserError(f"{option}, line {line}: {_shown(text)} is no class: give a number or a name of {choices}.")


def _shown(text: str) -> str:
    return printable(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")
