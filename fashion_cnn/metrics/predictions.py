"""Predictions of a network for the images of a split: the input of every analysis."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Predictions:
    """Logits of a split, with what is true of each image.

    logits: `(N, C)` float32. targets: `(N,)` int64 class indices. indices: `(N,)` int64 positions in the
    data set that the split was cut from, ascending. All on the CPU.
    """

    logits: Tensor
    targets: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    @cached_property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, `(N, C)`."""
        return self.logits.softmax(dim=1)

    @cached_property
    def predicted(self) -> Tensor:
        """The class with the highest logit, `(N,)`."""
        return self.logits.argmax(dim=1)

    @cached_property
    def confidence(self) -> Tensor:
        """The probability of the predicted class, `(N,)`."""
        return self.probabilities.amax(dim=1)

    @cached_property
    def correct(self) -> Tensor:
        """Whether the predicted class is the target, `(N,)` bool."""
        return self.predicted == self.targets

    @cached_property
    def balanced_accuracy(self) -> float:
        """The mean over the classes of the share of a class's images that are recognised (macro recall)."""
        counts = self.targets.bincount(minlength=self.num_classes)
        right = self.targets[self.correct].bincount(minlength=self.num_classes)
        return (right[counts > 0] / counts[counts > 0]).mean().item()

    @cached_property
    def losses(self) -> Tensor:
        """Cross-entropy of each image, `(N,)`."""
        return functional.cross_entropy(self.logits, self.targets, reduction="none")

    def of_class(self, label: int) -> "Predictions":
        """Those of the images whose target is `label`."""
        chosen = self.targets == label
        return Predictions(self.logits[chosen], self.targets[chosen], self.indices[chosen])


def write_predictions(path: Path, predictions: Mapping[str, Predictions]) -> None:
    """Store predictions by name in one .npz file: arrays `<name>.logits`, `<name>.targets` and `<name>.indices`."""
    arrays = {f"{name}.{field}": values.numpy() for name, p in predictions.items() for field, values in _fields(p)}
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    partial.replace(path)


def _fields(predictions: Predictions) -> list[tuple[str, Tensor]]:
    return [("logits", predictions.logits), ("targets", predictions.targets), ("indices", predictions.indices)]


def read_predictions(path: Path) -> dict[str, Predictions]:
    """What `write_predictions` stored."""
    # NumPy leaves a damaged file open that it opens itself.
    with path.open("rb") as opened, np.load(opened) as file:
        names = dict.fromkeys(name.rpartition(".")[0] for name in file.files)
        return {
            name: Predictions(
                *(torch.from_numpy(file[f"{name}.{field}"]) for field in ("logits", "targets", "indices"))
            )
            for name in names
        }
