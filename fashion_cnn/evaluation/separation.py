"""How well a score tells images of the known classes (inside) from others (outside)."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Separation:
    """Scores of the images inside `(N,)` and outside `(M,)`, float64, meant to be higher inside."""

    inside: Tensor
    outside: Tensor

    @cached_property
    def auroc(self) -> float:
        """How often an image inside scores higher than one outside, a tie counted half: 0.5 is chance, 1 is perfect."""
        return self._placements[0].mean().item()

    @cached_property
    def standard_error(self) -> float:
        """Of the AUROC, as far as the choice of the images goes: DeLong, DeLong and Clarke-Pearson, 1988."""
        return sum(part.var().item() / len(part) for part in self._placements) ** 0.5

    @property
    def false_positive_rate(self) -> float:
        """The share of the images outside that are let in by the threshold that lets in 95% of those inside (FPR95)."""
        kept = math.ceil(0.95 * len(self.inside))
        threshold = self.inside.sort(descending=True).values[kept - 1]
        return (self.outside >= threshold).double().mean().item()

    @cached_property
    def _placements(self) -> tuple[Tensor, Tensor]:
        """For each image inside the share of those outside that it beats, for each outside the share that beat it."""
        count = len(self.inside)
        ranks = midranks(torch.cat([self.inside, self.outside]))
        beaten = (ranks[:count] - midranks(self.inside)) / len(self.outside)
        beating = 1 - (ranks[count:] - midranks(self.outside)) / count
        return beaten, beating


def midranks(values: Tensor) -> Tensor:
    """The ranks `(N,)` of values `(N,)` from 1 up, float64; equal ones share the mean of their ranks."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    counts = counts.double()
    return (counts.cumsum(0) - (counts - 1) / 2)[place]
