"""One concept: where its examples lie, how sure a picture must be of it, and how well that is likely to work."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.concepts.background import Background


@dataclass(frozen=True)
class Concept:
    """name. direction `(D,)`: of the examples in the background's whitened space, of length 1. threshold: of the score,
    which `false_alarms` of the images that the network knows exceed. examples: their number. recognised: how many of
    them were recognised when the concept was learned from the others; None of a single one.
    """

    name: str
    direction: Tensor
    threshold: float
    false_alarms: float
    examples: int
    recognised: int | None

    def scores(self, whitened: Tensor) -> Tensor:
        """How much of the concept is in whitened embeddings `(N, D)`: `(N,)`; known images have 0 ± 1."""
        return whitened @ self.direction


def learn(name: str, examples: Tensor, background: Background, *, false_alarms: float = 0.05) -> Concept:
    """A concept out of the embeddings of its examples `(K, D)`.

    false_alarms: the share of images of what the network knows that may be taken for it.
    """
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


def _found(whitened: Tensor, background: Background, false_alarms: float) -> tuple[Tensor, float]:
    direction = functional.normalize(whitened.mean(dim=0), dim=0)
    return direction, (background.others @ direction).quantile(1 - false_alarms).item()
