"""Generalization gap: the difference of accuracy and loss between training and held-out images, with intervals.

The training images are usually a sample of the training split, the train probe. `train_share` is the share of the split
that was evaluated. It reduces the sampling error of that side (Cochran, "Sampling Techniques", 1977, section 2.6), to
none at 1: the whole split has one accuracy.
"""

import math
from collections.abc import Sequence

from fashion_cnn.metrics.intervals import Interval, newcombe_interval, welch_interval, wilson_interval
from fashion_cnn.metrics.predictions import Predictions


def accuracy_gap(train: Predictions, held_out: Predictions, train_share: float = 0.0) -> Interval:
    """Accuracy on `train` minus accuracy on `held_out`, as a fraction in [-1, 1].

    The interval is Newcombe's. It covers the sampling of the images, not the choice of the seed.
    """
    train_accuracy, held_out_accuracy = (split.correct.double().mean().item() for split in (train, held_out))
    return accuracy_gap_of(train_accuracy, held_out_accuracy, len(train), len(held_out), train_share)


def accuracy_gap_of(
    train_accuracy: float, held_out_accuracy: float, train_count: int, held_out_count: int, train_share: float
) -> Interval:
    """Return `accuracy_gap` from the two accuracies and the numbers of images."""
    # The number of images whose binomial variance equals that of a sample without replacement.
    effective_count = train_count / (1 - train_share) if train_share < 1 else math.inf
    return newcombe_interval(
        wilson_interval(train_accuracy, effective_count), wilson_interval(held_out_accuracy, held_out_count)
    )


def loss_gap(train: Predictions, held_out: Predictions, train_share: float = 0.0) -> Interval:
    """Mean loss on `held_out` minus mean loss on `train`, in nats, with Welch's interval."""
    return welch_interval(held_out.losses, train.losses, second_share=train_share)


def accuracy_gap_by_class(train: Predictions, held_out: Predictions, train_share: float = 0.0) -> list[Interval | None]:
    """Accuracy gap of each class, in class order; None for a class that either split has no image of."""
    pairs = ((train.of_class(label), held_out.of_class(label)) for label in range(train.num_classes))
    return [
        accuracy_gap(of_train, of_held_out, train_share) if len(of_train) and len(of_held_out) else None
        for of_train, of_held_out in pairs
    ]


def largest_gap_classes(train: Predictions, held_out: Predictions) -> list[int]:
    """Fewest classes that account for half of the accuracy gap, largest contribution first.

    The contribution of a class is its accuracy gap, if positive, times the number of its held-out images.

    Returns:
        Class indices; empty if the interval of the overall accuracy gap does not lie above zero: noise has no cause.
    """
    if accuracy_gap(train, held_out).low <= 0:
        return []
    gaps = accuracy_gap_by_class(train, held_out)
    counts = held_out.targets.bincount(minlength=len(gaps)).tolist()
    contributions = [max(gap.estimate, 0) * count if gap else 0.0 for gap, count in zip(gaps, counts, strict=True)]
    largest: list[int] = []
    for label in sorted(range(len(contributions)), key=lambda label: -contributions[label]):
        if sum(contributions[chosen] for chosen in largest) >= sum(contributions) / 2:
            break
        largest.append(label)
    return largest


def gap_metrics(train: Predictions, held_out: Predictions, train_share: float, *, prefix: str) -> dict[str, float]:
    """Interval bounds of the loss gap and the accuracy gap, named `<prefix>/loss_low` and so on."""
    gaps = {
        "loss": loss_gap(train, held_out, train_share),
        "accuracy": accuracy_gap(train, held_out, train_share),
    }
    return {
        f"{prefix}/{name}_{bound}": value
        for name, gap in gaps.items()
        for bound, value in (("low", gap.low), ("high", gap.high))
    }


def gap_by_class_metrics(train: Predictions, held_out: Predictions, class_names: Sequence[str]) -> dict[str, float]:
    """Accuracy gap of each class that both splits contain, named `gap_by_class/<class>`."""
    gaps = zip(class_names, accuracy_gap_by_class(train, held_out), strict=True)
    return {f"gap_by_class/{metric_name(name)}": gap.estimate for name, gap in gaps if gap}


def metric_name(class_name: str) -> str:
    """Class name as one level of a metric name, in which a slash would start another level."""
    return class_name.replace("/", "-")
