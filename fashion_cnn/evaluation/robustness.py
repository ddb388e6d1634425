"""Accuracy under corruptions, and the mean corruption error beside a baseline's."""

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fashion_cnn.data.statistics import fingerprint
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from fashion_cnn.inference.network import Classify, all_logits

_PLAIN = ("clean", "standard_error", "images", "data_sha256", "seed")


@dataclass(frozen=True)
class Robustness:
    """Accuracy, 0 to 1, on a split as it is and under corruptions.

    clean: as it is. accuracy: by corruption, at the severities 1 to 5. standard_error: of `mean`, as far as the choice
    of the images goes. images: how many there were. seed and strengths (by corruption, of the five severities): which
    spoilt images these were.
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
        """The accuracy over all corruptions and severities."""
        return fmean(fmean(row) for row in self.accuracy.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"mean": self.mean, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Robustness":
        """What `to_dict` made, also after a way through JSON."""
        accuracy, strengths = (
            {name: tuple(row) for name, row in values[field].items()} for field in ("accuracy", "strengths")
        )
        plain: dict[str, Any] = {field: values[field] for field in _PLAIN}
        return cls(accuracy=accuracy, strengths=strengths, **plain)


def read_robustness(path: Path) -> Robustness:
    """What `to_dict` made, stored as JSON. Raises UserError where it cannot be read."""
    try:
        return Robustness.from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: measure the robustness of that run first.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no record of a robustness ({error!r}): measure it again.") from error


def measure_robustness(
    classify: Classify,
    images: Tensor,
    targets: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 250,
    corruptions: Collection[str] = tuple(CORRUPTIONS),
    progress: Callable[[int, int], None] | None = None,
) -> Robustness:
    """Measure the accuracy on images `(N, C, H, W)` uint8 with `targets` `(N,)`, as they are and under corruptions.

    seed: of what is random in the corruptions. progress: called after each pass over the images with the number of
    passes made and of all passes. Raises UserError for a corruption that there is not.
    """
    passes = list(product(corruptions, SEVERITIES))

    def measure(shown: Tensor, done: int) -> Tensor:
        """Whether each image is recognised, `(N,)`."""
        right = (all_logits(classify, shown, batch_size).argmax(dim=1) == targets).double()
        if progress:
            progress(done, 1 + len(passes))
        return right

    clean = measure(images, 1).mean().item()
    accuracy: dict[str, tuple[float, ...]] = {name: () for name in corruptions}
    shares = torch.zeros(len(images), dtype=torch.float64)
    for done, (name, severity) in enumerate(passes, start=2):
        right = measure(corrupt(images, name, severity, seed=seed), done)
        accuracy[name] += (right.mean().item(),)
        shares += right / len(passes)
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
    """Errors as percent of a baseline's, by corruption: 100 is as robust, less is more robust."""

    by_corruption: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean corruption error (mCE)."""
        return fmean(self.by_corruption.values())


def corruption_errors(result: Robustness, baseline: Robustness) -> CorruptionErrors:
    """The errors summed over the severities, divided by those of the baseline (Hendrycks and Dietterich, 2019).

    Raises UserError where the two were not measured on the same spoilt images, or the baseline makes no errors.
    """
    require_comparable(baseline, result.data_sha256, seed=result.seed, strengths=result.strengths)
    return CorruptionErrors({name: 100 * _error(result, name) / _error(baseline, name) for name in result.accuracy})


def require_comparable(
    baseline: Robustness, data_sha256: str, *, seed: int = 0, strengths: dict[str, tuple[float, ...]] | None = None
) -> None:
    """Raises UserError where a measurement on these images, spoilt so (None: as `measure_robustness` does), cannot be
    divided by the baseline's errors.
    """
    strengths = strengths or {name: corruption.strengths for name, corruption in CORRUPTIONS.items()}
    if (seed, data_sha256) != (baseline.seed, baseline.data_sha256) or any(
        baseline.strengths.get(name) != those for name, those in strengths.items()
    ):
        raise UserError(
            "The baseline was measured under other corruptions or on other images: measure both in the same way."
        )
    if flawless := [name for name in strengths if _error(baseline, name) == 0]:
        raise UserError(f"The baseline makes no error under {', '.join(flawless)}, so there is nothing to divide by.")


def _error(of: Robustness, name: str) -> float:
    return sum(1 - accuracy for accuracy in of.accuracy[name])
