"""Out-of-distribution images, and how well a network's scores separate them from images of its classes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fashion_cnn.data.splits import derive_seed
from fashion_cnn.inference.network import LogitsFunction
from fashion_cnn.metrics.ranking import midranks

LEFT_OUT = "classes_left_out"
# Shuffled patches along each side: 7 x 7 pixels in images of 28 x 28.
_PATCHES = 4


@dataclass(frozen=True)
class Separation:
    """Scores of inliers and outliers, which should be higher for inliers.

    Attributes:
        inside: scores `(N,)` float64 of images of the classes.
        outside: scores `(M,)` float64 of other images.
        is_paired: whether each image of `outside` was made from that of `inside` in the same place.
    """

    inside: Tensor
    outside: Tensor
    is_paired: bool = False

    @cached_property
    def auroc(self) -> float:
        """Probability that an inlier scores higher than an outlier, ties counted half: 0.5 is chance, 1 is perfect."""
        return self._placements[0].mean().item()

    @cached_property
    def standard_error(self) -> float:
        """Standard error of the AUROC over the choice of the images.

        Independent images have that of DeLong, DeLong and Clarke-Pearson (1988); paired ones have that of clustered
        data with a pair in each cluster (Obuchowski, "Nonparametric Analysis of Clustered ROC Curve Data", 1997).
        """
        below, above = self._placements
        if self.is_paired:
            return ((below + above).var().item() / len(below)) ** 0.5
        return (below.var().item() / len(below) + above.var().item() / len(above)) ** 0.5

    @property
    def false_positive_rate(self) -> float:
        """Share of the outliers above the threshold that 95% of the inliers reach (FPR95)."""
        rank = math.ceil(0.95 * len(self.inside))
        threshold = self.inside.sort(descending=True).values[rank - 1]
        return (self.outside >= threshold).double().mean().item()

    @cached_property
    def _placements(self) -> tuple[Tensor, Tensor]:
        """For each inlier the share of outliers below it, for each outlier the share of inliers above it."""
        count = len(self.inside)
        ranks = midranks(torch.cat([self.inside, self.outside]))
        below = (ranks[:count] - midranks(self.inside)) / len(self.outside)
        above = 1 - (ranks[count:] - midranks(self.outside)) / count
        return below, above


def uniform_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Independent, uniformly distributed pixel values."""
    return torch.randint(256, images.shape, generator=generator, dtype=torch.uint8)


def gaussian_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Independent normal pixel values with the images' mean and standard deviation by channel, clipped to 0 to 255."""
    values = images.float()
    mean, deviation = values.mean(dim=(0, 2, 3), keepdim=True), values.std(dim=(0, 2, 3), keepdim=True)
    noise = mean + deviation * torch.randn(images.shape, generator=generator)
    return noise.round().clamp(0, 255).to(torch.uint8)


def shuffled_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image cut into 4 x 4 patches in a random order; pixels beyond the last whole patch stay."""
    batch, channels = images.shape[:2]
    height, width = (side // _PATCHES for side in images.shape[2:])
    area = (..., slice(height * _PATCHES), slice(width * _PATCHES))
    grid = images[area].reshape(batch, channels, _PATCHES, height, _PATCHES, width)
    patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(batch, _PATCHES**2, generator=generator).argsort(dim=1)
    patches = patches[torch.arange(batch)[:, None], order].unflatten(1, (_PATCHES, _PATCHES))
    shuffled = images.clone()
    shuffled[area] = patches.permute(0, 3, 1, 4, 2, 5).reshape(images[area].shape)
    return shuffled


def inverted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Negatives of the images."""
    return 255 - images


# Each function makes outliers from images `(N, C, H, W)` uint8, of the same shape and type.
OUTLIERS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "uniform_noise": uniform_noise,
    "gaussian_noise": gaussian_noise,
    "shuffled_patches": shuffled_patches,
    "inverted": inverted,
}


def confidence(logits: Tensor) -> Tensor:
    """Maximum softmax probability (Hendrycks and Gimpel, 2017, arXiv 1610.02136)."""
    return logits.double().softmax(dim=1).amax(dim=1)


def energy(logits: Tensor) -> Tensor:
    """Negative energy at temperature 1, log-sum-exp of the logits (Liu et al., 2020, arXiv 2010.03759)."""
    return logits.double().logsumexp(dim=1)


# Each function maps logits `(N, num_classes)` to scores `(N,)` float64 that should be higher for known classes.
SCORES = {"confidence": confidence, "energy": energy}


@dataclass(frozen=True)
class Outliers:
    """Logits of inliers and outliers.

    Attributes:
        inside: `(N, num_classes)`, logits of images of the classes.
        outside: `(M, num_classes)`, logits by the name of the set of outliers. Those of `OUTLIERS` are in the order of
            the images that they were made from.
    """

    inside: Tensor
    outside: dict[str, Tensor]

    def separation(self, name: str, score: str) -> Separation:
        """Scores of the inliers and of one set of outliers.

        Args:
            name: the set of outliers.
            score: the score, a key of SCORES.
        """
        return Separation(SCORES[score](self.inside), SCORES[score](self.outside[name]), is_paired=name in OUTLIERS)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """AUROC, its standard error and FPR95 by set and score, as plain values for JSON."""
        return {
            name: {"images": len(logits), **{score: self._metrics(name, score) for score in SCORES}}
            for name, logits in self.outside.items()
        }

    def _metrics(self, name: str, score: str) -> dict[str, float]:
        separation = self.separation(name, score)
        return {
            "auroc": separation.auroc,
            "auroc_standard_error": separation.standard_error,
            "fpr95": separation.false_positive_rate,
        }


def outlier_sets(images: Tensor, *, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Names and images `(N, C, H, W)` uint8 of all sets of OUTLIERS.

    Args:
        images: images of the classes, `(N, C, H, W)` uint8.
        seed: seed of the random draws, which differ between the sets.
    """
    for name, function in OUTLIERS.items():
        yield name, function(images, torch.Generator().manual_seed(derive_seed("outliers", seed, name)))


def evaluate_outliers(
    logits: LogitsFunction,
    images: Tensor,
    *,
    left_out: Tensor | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Outliers:
    """Compute a network's logits for images of its classes and for outliers made from them.

    Args:
        logits: the network, such as `NetworkRunner.logits`.
        images: images of the classes, `(N, C, H, W)` uint8.
        left_out: `(M, C, H, W)` uint8 images of classes that the training left out; empty or None adds no set.
        seed: see `outlier_sets`.
        progress: called after each set with the number of sets done and the total.
    """
    extra = [(LEFT_OUT, left_out)] if left_out is not None and len(left_out) else []
    sets = chain([("inside", images)], outlier_sets(images, seed=seed), extra)
    total = 1 + len(OUTLIERS) + len(extra)
    results: dict[str, Tensor] = {}
    for done, (name, inputs) in enumerate(sets, start=1):
        results[name] = logits(inputs)
        if progress:
            progress(done, total)
    return Outliers(inside=results.pop("inside"), outside=results)
