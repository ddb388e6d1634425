"""A concept learned from a few examples, and the background of training images that it has to stand out from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.data import ImageDataModule
from fashion_cnn.inference.network import EmbeddingNetwork

# Maximum number of known images for the covariance, and of further ones for the thresholds.
_COVARIANCE_IMAGES, _THRESHOLD_IMAGES = 4000, 2000
MAX_KNOWN_IMAGES = _COVARIANCE_IMAGES + _THRESHOLD_IMAGES
# Share of the mean variance that is added to all directions. Among 0.02 to 0.4, this value was the best on training
# images (docs/concepts.md).
_SHRINKAGE = 0.4


@dataclass(frozen=True)
class Background:
    """Whitening transform of embeddings, with whitened images of the known classes.

    Whitened embeddings of known images vary alike in all directions, except that shrinkage leaves a standard deviation
    well below 1 where they hardly vary. An example of an unknown class lies far from them along such directions (linear
    discriminant analysis with one class for everything known: Fisher 1936).

    Attributes:
        mean: mean embedding `(D,)`.
        whitener: whitening matrix `(D, D)`.
        others: further known images, whitened, `(M, D)`, for thresholds.
    """

    mean: Tensor
    whitener: Tensor
    others: Tensor

    def whiten(self, embeddings: Tensor) -> Tensor:
        """Whiten embeddings `(N, D)`."""
        return (embeddings - self.mean) @ self.whitener


def fit_background(network: EmbeddingNetwork, data: ImageDataModule) -> Background:
    """Fit the background of a network to a sample of its training images."""
    data.prepare_data()
    data.setup("fit")
    split = data.train_split
    # A prefix of the training images is a stratified sample of them.
    return background_of(network.embed(split.images_at(split.indices[:MAX_KNOWN_IMAGES])))


def background_of(embeddings: Tensor) -> Background:
    """Fit a background to embeddings of known images.

    Args:
        embeddings: `(N, D)`, in random order; the last third, 2,000 at most, is for the thresholds. N is 3 or more.
    """
    held_back = min(_THRESHOLD_IMAGES, len(embeddings) // 3)
    known, others = embeddings[:-held_back], embeddings[-held_back:]
    mean = known.mean(dim=0)
    centred = (known - mean).double()
    covariance = centred.T @ centred / len(known)
    covariance += _SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(mean), dtype=torch.float64)
    variances, directions = torch.linalg.eigh(covariance)
    whitener = (directions / variances.sqrt() @ directions.T).float()
    return Background(mean, whitener, (others - mean) @ whitener)


@dataclass(frozen=True)
class Concept:
    """A concept that an image contains if its score exceeds the threshold.

    Attributes:
        name: name of the concept.
        direction: unit vector `(D,)` of the examples in the whitened space of the background.
        threshold: minimum score.
        false_alarms: expected share of known images above the threshold, at most, over draws of the background.
        examples: number of examples.
        recognised: number of examples that the concept learned from the other examples recognises; None for a single
            example.
    """

    name: str
    direction: Tensor
    threshold: float
    false_alarms: float
    examples: int
    recognised: int | None

    def scores(self, whitened: Tensor) -> Tensor:
        """Return the score `(N,)` of whitened embeddings `(N, D)`; known images have mean 0 and variance below 1."""
        return whitened @ self.direction


def learn(name: str, examples: Tensor, background: Background, *, false_alarms: float = 0.05) -> Concept:
    """Learn a concept.

    Args:
        name: name of the concept.
        examples: embeddings of its examples, `(K, D)`.
        background: background of the network.
        false_alarms: allowed share of known images above the threshold. A background of M images guarantees no less
            than 1 / (M + 1), which replaces smaller values.
    """
    false_alarms = max(false_alarms, 1 / (len(background.others) + 1))
    whitened = background.whiten(examples)
    direction, threshold = _fit(whitened, background, false_alarms)
    recognised = None
    if len(examples) > 1:
        recognised = 0
        for left_out in range(len(examples)):
            others = torch.cat([whitened[:left_out], whitened[left_out + 1 :]])
            other_direction, other_threshold = _fit(others, background, false_alarms)
            recognised += int(whitened[left_out] @ other_direction > other_threshold)
    return Concept(name, direction, threshold, false_alarms, len(examples), recognised)


def with_common_margin(concepts: Sequence[Concept], background: Background) -> list[Concept]:
    """Raise the thresholds so that all concepts together claim no more known images than one alone may.

    The margin of an image is the largest excess of its scores over the thresholds, in standard deviations of each
    concept's scores. All thresholds rise by the quantile of the margins of known images: the maximum statistic of
    Westfall and Young (1993), which holds for any number of concepts and any correlation between them.

    Args:
        concepts: concepts with thresholds of their own, of which the largest false positive rate becomes that of all.
        background: background that they were learned with.
    """
    if len(concepts) < 2:
        return [*concepts]
    scores = torch.stack([concept.scores(background.others) for concept in concepts], dim=1)
    spreads = scores.std(dim=0, correction=0).clamp(min=1e-12)
    margins = ((scores - torch.tensor([concept.threshold for concept in concepts])) / spreads).amax(dim=1)
    rise = max(0.0, _upper_quantile(margins, max(concept.false_alarms for concept in concepts)))
    return [
        replace(concept, threshold=concept.threshold + rise * spread)
        for concept, spread in zip(concepts, spreads.tolist(), strict=True)
    ]


def joint_false_alarm_rate(concepts: Sequence[Concept], background: Background) -> float:
    """Return the share of known images in which at least one of the concepts is recognised."""
    alarms = [concept.scores(background.others) > concept.threshold for concept in concepts]
    return torch.stack(alarms).any(dim=0).double().mean().item()


def _fit(whitened: Tensor, background: Background, false_alarms: float) -> tuple[Tensor, float]:
    """Return direction and threshold of whitened examples `(K, D)`."""
    direction = functional.normalize(whitened.mean(dim=0), dim=0)
    return direction, _upper_quantile(background.others @ direction, false_alarms)


def _upper_quantile(scores: Tensor, rate: float) -> float:
    """Return the value that a further score exceeds at this rate: split conformal prediction (Vovk et al. 2005)."""
    above = max(1, int((len(scores) + 1) * rate))
    return scores.topk(above).values[-1].item()
