"""Predictions of a network on the images of a split, the input of every analysis."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.runs.files import open_atomically


@dataclass(frozen=True)
class Predictions:
    """Logits and targets of the images of a split, on the CPU.

    Attributes:
        logits: `(N, C)` float32.
        targets: `(N,)` int64 class indices.
        indices: `(N,)` int64 positions in the data set that the split was taken from, ascending.
    """

    logits: Tensor
    targets: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_classes(self) -> int:
        """The number of classes `C`."""
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
        """Mask of the images whose predicted class is the target, `(N,)` bool."""
        return self.predicted == self.targets

    @cached_property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that have images (macro recall)."""
        counts = self.targets.bincount(minlength=self.num_classes)
        correct = self.targets[self.correct].bincount(minlength=self.num_classes)
        return (correct[counts > 0] / counts[counts > 0]).mean().item()

    @cached_property
    def losses(self) -> Tensor:
        """Cross-entropy of each image, `(N,)`."""
        return functional.cross_entropy(self.logits, self.targets, reduction="none")

    def of_class(self, label: int) -> "Predictions":
        """Predictions of the images whose target is `label`."""
        mask = self.targets == label
        return Predictions(self.logits[mask], self.targets[mask], self.indices[mask])


PREDICTION_FIELDS = [field.name for field in fields(Predictions)]
# Logits shrink little: a file that unpacks to more bytes and to this multiple of its size was not written here.
_MAX_UNPACKED = 256_000_000
_MAX_RATIO = 100


def write_predictions(path: Path, predictions: Mapping[str, Predictions]) -> None:
    """Store predictions by name in one .npz file: arrays `<name>.logits`, `<name>.targets` and `<name>.indices`."""
    arrays = {
        f"{name}.{field}": getattr(split, field).numpy()
        for name, split in predictions.items()
        for field in PREDICTION_FIELDS
    }
    with open_atomically(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def check_unpacked_size(archive: ZipFile, path: Path) -> None:
    """Raise ValueError if the arrays of an .npz file would take far more memory than any that is written here."""
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(_MAX_UNPACKED, _MAX_RATIO * size):
        raise ValueError(f"{size:,} bytes unpack to {unpacked:,}")


def read_predictions(path: Path) -> dict[str, Predictions]:
    """Read the predictions that `write_predictions` stored, by name.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is damaged; the message is the reason.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    try:
        # np.load leaves a damaged file open if it opens the file itself.
        with path.open("rb") as opened, np.load(opened) as file:
            check_unpacked_size(file.zip, path)
            names = dict.fromkeys(name.rpartition(".")[0] for name in file.files)
            stored = {
                name: [torch.from_numpy(file[f"{name}.{field}"]) for field in PREDICTION_FIELDS] for name in names
            }
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise errors of many types
        raise ValueError(f"it holds no {error.args[0]}" if isinstance(error, KeyError) else str(error)) from error
    return {name: _checked(name, *arrays) for name, arrays in stored.items()}


def _checked(name: str, logits: Tensor, targets: Tensor, indices: Tensor) -> Predictions:
    if logits.ndim != 2 or not targets.shape == indices.shape == logits.shape[:1]:
        raise ValueError(f"the arrays of {name} do not fit together")
    if (logits.dtype, targets.dtype, indices.dtype) != (torch.float32, torch.int64, torch.int64):
        raise ValueError(f"the arrays of {name} have other types")
    if not (logits.isfinite().all() and (targets >= 0).all() and (targets < logits.shape[1]).all()):
        raise ValueError(f"{name} has impossible values")
    return Predictions(logits, targets, indices)
