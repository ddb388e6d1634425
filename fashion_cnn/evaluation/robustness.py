"""Accuracy under corruptions, and the mean corruption error relative to a baseline."""

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fashion_cnn.data.batches import fingerprint
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from fashion_cnn.inference.network import LogitsFunction
from fashion_cnn.runs.damage import MAX_RESULTS_BYTES, read_text


@dataclass(frozen=True)
class Robustness:
    """Accuracy on a split, from 0 to 1, without and with corruptions.

    Attributes:
        clean: accuracy on the uncorrupted images.
        accuracy: accuracies at severities 1 to 5 by corruption.
        standard_error: standard error of `mean` over the choice of the images.
        images: number of images.
        data_sha256: hash of the images and targets.
        seed: seed of the corruptions.
        strengths: strengths at severities 1 to 5 by corruption, see `Corruption`.
    """

    clean: float
    accuracy: dict[str, tuple[float, ...]]
    standard_error: float
    images: int
    data_sha256: str
    seed: int
    strengths: dict[str, tuple[float, ...]]

    @property
    def mean(self) -> float:
        """Accuracy averaged over all corruptions and severities."""
        return fmean(fmean(row) for row in self.accuracy.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"mean": self.mean, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Robustness":
        """Inverse of `to_dict`, also after a round trip through JSON."""
        fields: dict[str, Any] = {field: values[field] for field in cls.__dataclass_fields__}
        for field in ("accuracy", "strengths"):
            fields[field] = {name: tuple(row) for name, row in fields[field].items()}
        return cls(**fields)


def read_robustness(path: Path) -> Robustness:
    """Read a `Robustness` stored as JSON.

    Raises:
        UserError: if the file is missing or holds something else.
    """
    try:
        return Robustness.from_dict(json.loads(read_text(path, MAX_RESULTS_BYTES)))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: evaluate that run with robustness=true first.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a robustness record ({error!r}): evaluate again.") from error


def evaluate_robustness(
    logits: LogitsFunction,
    images: Tensor,
    targets: Tensor,
    *,
    seed: int = 0,
    corruptions: Collection[str] = tuple(CORRUPTIONS),
    progress: Callable[[int, int], None] | None = None,
) -> Robustness:
    """Evaluate the accuracy on images without and with each corruption at each severity.

    Args:
        logits: the network, such as `NetworkRunner.logits`.
        images: `(N, C, H, W)` uint8.
        targets: class indices `(N,)`.
        seed: seed of the corruptions.
        corruptions: names of the corruptions, keys of CORRUPTIONS.
        progress: called after each pass over the images with the number of passes done and the total.

    Raises:
        UserError: if there is no corruption of that name.
    """
    conditions = list(product(corruptions, SEVERITIES))

    def correct(inputs: Tensor, done: int) -> Tensor:
        result = (logits(inputs).argmax(dim=1) == targets).double()
        if progress:
            progress(done, 1 + len(conditions))
        return result

    clean = correct(images, 1).mean().item()
    accuracy: dict[str, tuple[float, ...]] = {name: () for name in corruptions}
    shares = torch.zeros(len(images), dtype=torch.float64)
    for done, (name, severity) in enumerate(conditions, start=2):
        result = correct(corrupt(images, name, severity, seed=seed), done)
        accuracy[name] += (result.mean().item(),)
        shares += result / len(conditions)
    return Robustness(
        clean=clean,
        accuracy=accuracy,
        standard_error=shares.std().item() / len(images) ** 0.5,
        images=len(images),
        data_sha256=fingerprint(images, targets),
        seed=seed,
        strengths={name: CORRUPTIONS[name].strengths for name in corruptions},
    )


@dataclass(frozen=True)
class CorruptionErrors:
    """Errors by corruption in percent of a baseline's: 100 is as robust as the baseline, less is more robust."""

    by_corruption: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean corruption error (mCE)."""
        return fmean(self.by_corruption.values())


def corruption_errors(result: Robustness, baseline: Robustness) -> CorruptionErrors:
    """Errors summed over the severities, in percent of those of the baseline.

    Hendrycks and Dietterich, 2019 (arXiv 1903.12261), section 4.1.

    Raises:
        UserError: if the two were evaluated on different corrupted images, or the baseline makes no errors.
    """
    require_comparable(baseline, result.data_sha256, seed=result.seed, strengths=result.strengths)
    return CorruptionErrors({name: 100 * _error(result, name) / _error(baseline, name) for name in result.accuracy})


def require_comparable(
    baseline: Robustness, data_sha256: str, *, seed: int = 0, strengths: dict[str, tuple[float, ...]] | None = None
) -> None:
    """Check that a result on certain corrupted images can be divided by the baseline's errors.

    Args:
        baseline: the baseline's result.
        data_sha256: hash of the images of the other result.
        seed: seed of its corruptions.
        strengths: its `Robustness.strengths`; None for those of CORRUPTIONS.

    Raises:
        UserError: if the baseline was evaluated on other images or corruptions, or makes no errors.
    """
    strengths = strengths or {name: corruption.strengths for name, corruption in CORRUPTIONS.items()}
    if (seed, data_sha256) != (baseline.seed, baseline.data_sha256) or any(
        baseline.strengths.get(name) != expected for name, expected in strengths.items()
    ):
        raise UserError(
            "The baseline was evaluated on other corruptions or other images: evaluate both in the same way."
        )
    if flawless := [name for name in strengths if _error(baseline, name) == 0]:
        raise UserError(f"The baseline makes no error under {', '.join(flawless)}: nothing to divide by.")


def _error(result: Robustness, name: str) -> float:
    return sum(1 - accuracy for accuracy in result.accuracy[name])
