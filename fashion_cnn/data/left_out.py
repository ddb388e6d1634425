"""Classes that a training leaves out, so that its network can be shown what it has never seen."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fashion_cnn.errors import UserError


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
