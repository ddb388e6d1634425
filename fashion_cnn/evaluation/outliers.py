"""Images outside the classes, and how well a network's scores separate them from images inside."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fashion_cnn.data.splits import derive_seed
from fashion_cnn.inference.network import Classify, all_logits

LEFT_OUT = "classes_left_out"
# The patches that are shuffled: so many along each side, of 7 x 7 pixels in images of 28 x 28.
_PATCHES = 4


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


def uniform_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """All values equally likely, each on its own."""
    return torch.randint(256, images.shape, generator=generator, dtype=torch.uint8)


def gaussian_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each value on its own, with the images' mean and standard deviation by channel, before it is cut to 0 to 255."""
    values = images.float()
    mean, deviation = (of(dim=(0, 2, 3), keepdim=True) for of in (values.mean, values.std))
    noise = mean + deviation * torch.randn(images.shape, generator=generator)
    return noise.round().clamp(0, 255).to(torch.uint8)


def shuffled_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image cut into 4 x 4 patches in a random order of its own; pixels left over at the end of a side stay."""
    batch, channels = images.shape[:2]
    height, width = (side // _PATCHES for side in images.shape[2:])
    cut = (..., slice(height * _PATCHES), slice(width * _PATCHES))
    grid = images[cut].reshape(batch, channels, _PATCHES, height, _PATCHES, width)
    patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(batch, _PATCHES**2, generator=generator).argsort(dim=1)
    patches = patches[torch.arange(batch)[:, None], order].unflatten(1, (_PATCHES, _PATCHES))
    shuffled = images.clone()
    shuffled[cut] = patches.permute(0, 3, 1, 4, 2, 5).reshape(images[cut].shape)
    return shuffled


def inverted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The negatives."""
    return 255 - images


# Each makes out of images `(N, C, H, W)` uint8 as many that are none of the classes.
OUTLIERS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "uniform_noise": uniform_noise,
    "gaussian_noise": gaussian_noise,
    "shuffled_patches": shuffled_patches,
    "inverted": inverted,
}


def confidence(logits: Tensor) -> Tensor:
    """The probability of the predicted class. Hendrycks and Gimpel, 2017 (arXiv 1610.02136)."""
    return logits.double().softmax(dim=1).amax(dim=1)


def energy(logits: Tensor) -> Tensor:
    """The negative energy at temperature 1, log-sum-exp of the logits. Liu et al., 2020 (arXiv 2010.03759)."""
    return logits.double().logsumexp(dim=1)


# Each scores images by their logits `(N, num_classes)`: `(N,)` float64, meant to be higher for those of known classes.
SCORES = {"confidence": confidence, "energy": energy}


@dataclass(frozen=True)
class Outliers:
    """The logits `(N, num_classes)` of the images inside, and of each set of images outside by its name."""

    inside: Tensor
    outside: dict[str, Tensor]

    def separation(self, name: str, score: str) -> Separation:
        """How `score`, one of SCORES, tells the outside images called `name` from those inside."""
        return Separation(SCORES[score](self.inside), SCORES[score](self.outside[name]))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """AUROC with its standard error and false positive rate by set and score, as plain values for JSON."""
        return {
            name: {"images": len(logits)}
            | {
                score: {
                    "auroc": found.auroc,
                    "auroc_standard_error": found.standard_error,
                    "fpr95": found.false_positive_rate,
                }
                for score in SCORES
                for found in [self.separation(name, score)]
            }
            for name, logits in self.outside.items()
        }


def outlier_sets(images: Tensor, *, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Each of OUTLIERS, made of images `(N, C, H, W)` uint8, by name. What is random follows from seed and name."""
    for name, make in OUTLIERS.items():
        yield name, make(images, torch.Generator().manual_seed(derive_seed("outliers", seed, name)))


def measure_outliers(
    classify: Classify,
    images: Tensor,
    *,
    left_out: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 250,
    progress: Callable[[int, int], None] | None = None,
) -> Outliers:
    """Show a network images `(N, C, H, W)` uint8 of its classes, and others that are made of them.

    left_out: `(M, C, H, W)` uint8 images of classes that it was trained without; none of them, or None, is no set.
    progress: called after each set with the number of sets shown and of all sets.
    """
    inside, further = [("inside", images)], [(LEFT_OUT, left_out)] if left_out is not None and len(left_out) else []
    total = len(inside) + len(OUTLIERS) + len(further)
    logits: dict[str, Tensor] = {}
    for done, (name, shown) in enumerate(chain(inside, outlier_sets(images, seed=seed), further), start=1):
        logits[name] = all_logits(classify, shown, batch_size)
        if progress:
            progress(done, total)
    return Outliers(inside=logits.pop("inside"), outside=logits)
