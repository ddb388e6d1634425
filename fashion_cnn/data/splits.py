"""Seeded selections from a labelled data set: random streams, stratified orders, left-out classes."""

import random
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fashion_cnn.errors import UserError


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
    labels = sorted({_label(class_, class_names) for class_ in left_out})
    remaining = len(class_names) - len(labels)
    if labels and remaining < 2:
        raise UserError(
            f"data.left_out={list(left_out)} leaves {remaining} of the {len(class_names)} classes: keep two or more."
        )
    return labels


def _label(class_: str | int, class_names: Sequence[str]) -> int:
    if class_ in class_names:
        return class_names.index(str(class_))
    if isinstance(class_, int) and 0 <= class_ < len(class_names):
        return class_
    choices = ", ".join(f"{label} {name}" for label, name in enumerate(class_names))
    raise UserError(f"data.left_out={class_} is no class: give numbers or names of {choices}.")


def renumber(targets: Tensor, left_out: Collection[int], num_classes: int) -> Tensor:
    """Renumber the targets `(N,)` without the labels `left_out`, which become -1; `num_classes` classes remain."""
    numbers = torch.full((num_classes + len(left_out),), -1)
    numbers[[label for label in range(len(numbers)) if label not in left_out]] = torch.arange(num_classes)
    return numbers[targets]
