"""The generalization gap: how much better a network does on images it trained on, with its uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fashion_cnn.metrics.predictions import Predictions

_Z = 1.959964  # of 95% of a normal distribution


@dataclass(frozen=True)
class Gap:
    """The difference of a mean over two splits, with its 95% interval.

    estimate, low, high: positive where the network does better on the training images. The interval speaks of the
    choice of the images; the choice of a seed is not in it.
    """

    estimate: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether no gap at all is within the interval."""
        return self.low <= 0 <= self.high


def accuracy_gap(train: Predictions, held_out: Predictions) -> Gap:
    """Accuracy on `train` less accuracy on `held_out`, as a share of 1."""
    return share_gap(_accuracy(train), len(train), _accuracy(held_out), len(held_out))


def _accuracy(predictions: Predictions) -> float:
    return predictions.correct.double().mean().item()


def share_gap(train: float, train_count: int, held_out: float, held_out_count: int) -> Gap:
    """The difference of two shares, each seen in so many draws.

    The interval is Newcombe's, out of two Wilson intervals, which holds up where a share is near 1: "Interval
    estimation for the difference between independent proportions", 1998, method 10.
    """
    (ours_low, ours_high), (low, high) = wilson_interval(train, train_count), wilson_interval(held_out, held_out_count)
    estimate = train - held_out
    return Gap(
        estimate,
        low=estimate - math.hypot(train - ours_low, high - held_out),
        high=estimate + math.hypot(ours_high - train, held_out - low),
    )


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share seen in `count` draws. Wilson, 1927."""
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    # At 0 and at 1 one end is the share itself, but for rounding.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def loss_gap(train: Predictions, held_out: Predictions) -> Gap:
    """Mean loss on `held_out` less mean loss on `train`, in nats, with Welch's interval of normal quantiles."""
    ours, theirs = train.losses.double(), held_out.losses.double()
    estimate = (theirs.mean() - ours.mean()).item()
    half = _Z * math.sqrt(sum(_variance_of_mean(losses) for losses in (ours, theirs)))
    return Gap(estimate, estimate - half, estimate + half)


def _variance_of_mean(values: Tensor) -> float:
    return values.var().item() / len(values) if len(values) > 1 else math.inf


def accuracy_gap_by_class(train: Predictions, held_out: Predictions) -> list[Gap | None]:
    """The accuracy gap of the images of each class, in the order of the classes; None where a split has none."""
    pairs = ((train.of_class(label), held_out.of_class(label)) for label in range(train.num_classes))
    return [accuracy_gap(ours, theirs) if len(ours) and len(theirs) else None for ours, theirs in pairs]


def gap_carriers(train: Predictions, held_out: Predictions) -> list[int]:
    """The fewest classes that make up half of what the classes with a gap lose, the one that loses most first.

    A class loses its accuracy gap times its share of the held-out images. None where all of them together lose nothing.
    """
    if accuracy_gap(train, held_out).estimate <= 0:
        return []
    gaps = accuracy_gap_by_class(train, held_out)
    counts = held_out.targets.bincount(minlength=len(gaps)).tolist()
    losses = [max(gap.estimate, 0) * count if gap else 0.0 for gap, count in zip(gaps, counts, strict=True)]
    carriers: list[int] = []
    for label in sorted(range(len(losses)), key=lambda label: -losses[label]):
        if sum(losses[chosen] for chosen in carriers) >= sum(losses) / 2:
            break
        carriers.append(label)
    return carriers


def gap_figures(train: Predictions, held_out: Predictions, *, prefix: str) -> dict[str, float]:
    """The ends of the intervals of both gaps, named `<prefix>/accuracy_low` and so on."""
    gaps = {"loss": loss_gap(train, held_out), "accuracy": accuracy_gap(train, held_out)}
    return {
        f"{prefix}/{name}_{end}": value
        for name, gap in gaps.items()
        for end, value in (("low", gap.low), ("high", gap.high))
    }


def gap_by_class_figures(train: Predictions, held_out: Predictions, class_names: Sequence[str]) -> dict[str, float]:
    """The accuracy gap of each class that both splits hold, named `gap_by_class/<class>`."""
    gaps = zip(class_names, accuracy_gap_by_class(train, held_out), strict=True)
    return {f"gap_by_class/{figure_name(name)}": gap.estimate for name, gap in gaps if gap}


def figure_name(class_name: str) -> str:
    """A class's name as part of a figure's name, where a slash would open a level of its own."""
    return class_name.replace("/", "-")
