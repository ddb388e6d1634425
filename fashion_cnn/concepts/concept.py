"""A concept learned from a few examples, and the background of training images that it has to stand out from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.data import ImageDataModule
from fashion_cnn.inference.network import TrainedNetwork

# Of the training images; so many more for the thresholds.
_IMAGES, _HELD_BACK = 4000, 2000
# How much of their mean variance is added to all directions: a direction that hardly varies is not trusted alone. Of
# 0.02 to 0.4 the best on training images (docs/concepts.md).
_SHRINKAGE = 0.4


@dataclass(frozen=True)
class Background:
    """Whitens embeddings `(N, D)`: over the images that the network knows, directions vary alike, but for those that
    hardly vary, which vary less (shrinkage); the standard deviation is under 1 along each.

    In that space an example that the network has no class for is far from all that it knows, along directions that
    hardly ever vary (linear discriminant analysis: Fisher, 1936, with one class that is everything).

    mean `(D,)`, whitener `(D, D)`. others `(M, D)`: further known images, whitened, for thresholds.
    """

    mean: Tensor
    whitener: Tensor
    others: Tensor

    def whiten(self, embeddings: Tensor) -> Tensor:
        """Embeddings `(N, D)` in the whitened space."""
        return (embeddings - self.mean) @ self.whitener


def fit_background(network: TrainedNetwork, data: ImageDataModule) -> Background:
    """The background of a network: what it makes of a sample of its training images."""
    data.prepare_data()
    data.setup("fit")
    split = data.train_split
    # A prefix of the training images is a stratified sample of them.
    images = split.images_at(split.indices[: _IMAGES + _HELD_BACK])
    embeddings = network.embed(images)
    held_back = min(_HELD_BACK, len(embeddings) // 3)
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
    """name. direction `(D,)`: of the examples in the background's whitened space, of length 1. threshold: of the score,
    which at most `false_alarms` of the images that the network knows exceed, on average over backgrounds. examples:
    their number. recognised: how many of them were recognised when the concept was learned from the others; None of a
    single one.
    """

    name: str
    direction: Tensor
    threshold: float
    false_alarms: float
    examples: int
    recognised: int | None

    def scores(self, whitened: Tensor) -> Tensor:
        """How much of the concept is in whitened embeddings `(N, D)`: `(N,)`; known images lie round 0, their
        standard deviation is under 1.
        """
        return whitened @ self.direction


def learn(name: str, examples: Tensor, background: Background, *, false_alarms: float = 0.05) -> Concept:
    """A concept out of the embeddings of its examples `(K, D)`.

    false_alarms: the share of images of what the network knows that may be taken for it. Fewer than one in M + 1 are
    more than a background of M images can promise: the concept has what it can.
    """
    false_alarms = max(false_alarms, 1 / (len(background.others) + 1))
    whitened = background.whiten(examples)
    direction, threshold = _found(whitened, background, false_alarms)
    recognised = None
    if len(examples) > 1:
        recognised = 0
        for left_out in range(len(examples)):
            others = torch.cat([whitened[:left_out], whitened[left_out + 1 :]])
            found, least = _found(others, background, false_alarms)
            recognised += int(whitened[left_out] @ found > least)
    return Concept(name, direction, threshold, false_alarms, len(examples), recognised)


def joint_false_alarm_rate(concepts: Sequence[Concept], background: Background) -> float:
    """The share of known images that at least one of the concepts is seen in: false alarms add up."""
    alarms = [concept.scores(background.others) > concept.threshold for concept in concepts]
    return torch.stack(alarms).any(dim=0).double().mean().item()


def _found(whitened: Tensor, background: Background, false_alarms: float) -> tuple[Tensor, float]:
    direction = functional.normalize(whitened.mean(dim=0), dim=0)
    scores = background.others @ direction
    # The quantile of split conformal prediction (Vovk and others, 2005): a further known image is over it so seldom.
    above = max(1, int((len(scores) + 1) * false_alarms))
    return direction, scores.topk(above).values[-1].item()
