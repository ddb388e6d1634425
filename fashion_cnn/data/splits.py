"""Seeded selections of a labelled data set: random streams, stratified orders, classes that are left out."""

import random
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fashion_cnn.errors import UserError


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed that depends on all `parts`, such as a purpose, the run's seed and the epoch.

    The same in every process and Python version; neighbouring seeds give unrelated streams.
    """
    return random.Random("/".join(map(str, parts))).getrandbits(63)


def stratified_order(targets: Tensor, seed: int) -> Tensor:
    """A permutation `(N,)` of which every prefix holds the classes in their true proportions.

    targets: `(N,)` int64 class indices. Each class is shuffled, then the classes are interleaved,
    so a longer prefix contains every shorter one (learning curves stay nested).
    """
    generator = torch.Generator().manual_seed(derive_seed("split", seed))
    order = torch.randperm(len(targets), generator=generator)
    shuffled = targets[order]
    place = torch.empty(len(targets), dtype=torch.float64)
    for label in targets.unique():
        members = (shuffled == label).nonzero().squeeze(1)
        # The k-th of n lies at (k + 1/2) / n of the way: any prefix takes its share of each class.
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[place.argsort(stable=True)]


def left_out_labels(left_out: Collection[str | int], class_names: Sequence[str]) -> list[int]:
    """The labels of the classes to leave out, ascending, each given by its name or by its number from 0.

    Raises UserError for a class that there is not, and where fewer than two would be left.
    """
    labels = sorted({_label(given, class_names) for given in left_out})
    kept = len(class_names) - len(labels)
    if labels and kept < 2:
        raise UserError(
            f"data.left_out={list(left_out)} leaves {kept} of the {len(class_names)} classes: leave two or more."
        )
    return labels


def _label(given: str | int, class_names: Sequence[str]) -> int:
    if given in class_names:
        return class_names.index(str(given))
    if isinstance(given, int) and 0 <= given < len(class_names):
        return given
    offers = ", ".join(f"{label} {name}" for label, name in enumerate(class_names))
    raise UserError(f"data.left_out={given} is no class. Give numbers or names of these: {offers}.")


def renumbered(targets: Tensor, left_out: Collection[int], num_classes: int) -> Tensor:
    """The targets `(N,)` numbered among the classes that are kept, -1 where the class is left out.

    num_classes: of those that are kept.
    """
    numbers = torch.full((num_classes + len(left_out),), -1)
    numbers[[label for label in range(len(numbers)) if label not in left_out]] = torch.arange(num_classes)
    return numbers[targets]
