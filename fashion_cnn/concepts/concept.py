"""One concept: where its examples lie, how sure a picture must be of it, and how well that is likely to work."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.concepts.background import Background


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


def taken_for_any(concepts: Sequence[Concept], background: Background) -> float:
    """The share of known images that at least one of the concepts is seen in: false alarms add up."""
    alarms = [concept.scores(background.others) > concept.threshold for concept in concepts]
    return torch.stack(alarms).any(dim=0).double().mean().item()


def _found(whitened: Tensor, background: Background, false_alarms: float) -> tuple[Tensor, float]:
    direction = functional.normalize(whitened.mean(dim=0), dim=0)
    scores = background.others @ direction
    # The quantile of split conformal prediction (Vovk and others, 2005): a further known image is over it so seldom.
    above = max(1, int((len(scores) + 1) * false_alarms))
    return direction, scores.topk(above).values[-1].item()
