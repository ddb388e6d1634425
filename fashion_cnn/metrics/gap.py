"""Generalisation gap: the difference of accuracy and loss between training and held-out images, with intervals.

The training images are usually a sample of the training split, the train probe. `train_share` is the share of the split
that was evaluated. It reduces the sampling error of that side (Cochran, "Sampling Techniques", 1977, section 2.6), to
none at 1: the whole split has one accuracy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fashion_cnn.metrics.intervals import (
    Interval,
    newcombe_interval,
    normal_interval,
    ratio_interval,
    welch_interval,
    wilson_interval,
)
from fashion_cnn.metrics.predictions import Predictions

# Bootstrap samples that estimate the optimism of a chosen epoch.
_SAMPLES = 200


def accuracy_gap(train: Predictions, held_out: Predictions, train_share: float = 0.0) -> Interval:
    """Accuracy on `train` minus accuracy on `held_out`, as a fraction in [-1, 1].

    The interval is Newcombe's. It covers the sampling of the images, not the choice of the seed.

    Args:
        train: predictions of training images.
        held_out: predictions of images that the network was not trained on.
        train_share: share of the training split that `train` is, in [0, 1].
    """
    train_accuracy, held_out_accuracy = (split.correct.double().mean().item() for split in (train, held_out))
    return accuracy_gap_of(train_accuracy, held_out_accuracy, len(train), len(held_out), train_share)


def accuracy_gap_of(
    train_accuracy: float, held_out_accuracy: float, train_count: int, held_out_count: int, train_share: float
) -> Interval:
    """Compute `accuracy_gap` from the two accuracies, which are fractions, and the numbers of images."""
    return newcombe_interval(
        wilson_interval(train_accuracy, _effective_count(train_count, train_share)),
        wilson_interval(held_out_accuracy, held_out_count),
    )


def gap_share_of(
    train_accuracy: float, held_out_accuracy: float, train_count: int, held_out_count: int, train_share: float
) -> Interval:
    """Share of the held-out error that the gap makes up, 1 - training error / held-out error, with its interval.

    It is 0 without a gap and 1 for a network without training errors. The arguments are those of `accuracy_gap_of`.

    Returns:
        The share with its interval, whose lower bound may be negative and infinite; a share of 0 and an interval
        without lower bound if there are no held-out errors.
    """
    errors = ratio_interval(
        wilson_interval(1 - train_accuracy, _effective_count(train_count, train_share)),
        wilson_interval(1 - held_out_accuracy, held_out_count),
    )
    if held_out_accuracy == 1:
        return Interval(0.0, -math.inf, 1.0)
    return Interval(1 - errors.estimate, 1 - errors.high, 1 - errors.low)


def _effective_count(count: int, share: float) -> float:
    """Sample size with replacement whose variance equals that of `count` images drawn without, a `share` of all."""
    return count / (1 - share) if share < 1 else math.inf


@dataclass(frozen=True)
class ValidationPasses:
    """Measurements of the validation passes of a training on each validation image.

    The epoch that is best on some images looks better on them than it is. This optimism is estimated by the bootstrap
    and subtracted (Efron, "Estimating the error rate of a prediction rule", 1983): from the validation images, samples
    are drawn with replacement, and the accuracy of a sample's best epoch on the sample is compared with its accuracy on
    all images.

    Attributes:
        epochs: `(P,)`, the epoch of each pass, from 1.
        train_accuracy: `(P,)`, accuracy on the train probe.
        correct: `(P, N)` bool, whether each validation image was classified correctly.
        losses: `(P, N)`, its cross-entropy in nats.
    """

    epochs: Tensor
    train_accuracy: Tensor
    correct: Tensor
    losses: Tensor

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest validation accuracy, and the lowest loss among equals."""
        return int(self.epochs[self._best_pass()])

    def best_epoch_gap(self, train_count: int, train_share: float) -> Interval:
        """Accuracy gap of `best_epoch`, without optimism, with Newcombe's interval.

        Args:
            train_count: number of images of the train probe.
            train_share: share of the training split that the probe is.
        """
        correct, losses = self.correct.double(), self.losses.double()
        best = self._best_pass()
        accuracy = correct[best].mean().item()
        counts = self._bootstrap_counts()
        # Divided last: sums of integers are exact, so that equal accuracies compare equal.
        sampled = correct @ counts / correct.shape[1]
        chosen = _best_epochs(sampled, losses @ counts)
        optimism = sampled.gather(0, chosen[None])[0] - correct.mean(1)[chosen]
        held_out = min(1.0, max(0.0, accuracy - optimism.mean().item()))
        train_accuracy = self.train_accuracy[best].item()
        return accuracy_gap_of(train_accuracy, held_out, train_count, correct.shape[1], train_share)

    def loss_rise(self) -> Interval:
        """Rise of the validation loss from its lowest epoch to the last, in nats, without optimism, paired by image."""
        losses = self.losses.double()
        lowest = int(losses.mean(1).argmin())
        if lowest == len(losses) - 1:
            return Interval(0.0, 0.0, 0.0)
        rises = losses[-1] - losses
        sampled = losses @ self._bootstrap_counts() / losses.shape[1]
        chosen = sampled.argmin(0)
        optimism = (sampled[-1] - sampled.gather(0, chosen[None])[0] - rises.mean(1)[chosen]).mean().item()
        rise = normal_interval(rises[lowest])
        return Interval(*(value - optimism for value in (rise.estimate, rise.low, rise.high)))

    def _best_pass(self) -> int:
        return int(_best_epochs(self.correct.double().mean(1), self.losses.double().mean(1)))

    def _bootstrap_counts(self) -> Tensor:
        """Count how often each bootstrap sample has each image, `(N, samples)` float64."""
        images = self.correct.shape[1]
        drawn = torch.randint(images, (_SAMPLES, images), generator=torch.Generator().manual_seed(0))
        return torch.stack([row.bincount(minlength=images) for row in drawn], dim=1).double()


def _best_epochs(accuracy: Tensor, loss: Tensor) -> Tensor:
    """Index `(...)` of the pass with the highest accuracy `(P, ...)`, and the lowest loss `(P, ...)` among equals."""
    return torch.where(accuracy == accuracy.amax(0), loss, torch.inf).argmin(0)


def loss_gap(train: Predictions, held_out: Predictions, train_share: float = 0.0) -> Interval:
    """Mean loss on `held_out` minus mean loss on `train`, in nats, with Welch's interval.

    The arguments are those of `accuracy_gap`.
    """
    return welch_interval(held_out.losses, train.losses, second_share=train_share)


def accuracy_gap_by_class(train: Predictions, held_out: Predictions, train_share: float = 0.0) -> list[Interval | None]:
    """Accuracy gap of each class, in class order; None for a class without images in either split.

    The arguments are those of `accuracy_gap`; the share is taken to be the same in each class.
    """
    pairs = ((train.of_class(label), held_out.of_class(label)) for label in range(train.num_classes))
    return [
        accuracy_gap(train_class, held_out_class, train_share) if len(train_class) and len(held_out_class) else None
        for train_class, held_out_class in pairs
    ]


def largest_gap_classes(train: Predictions, held_out: Predictions, train_share: float = 0.0) -> list[int]:
    """Fewest classes that account for half of the accuracy gap, largest contribution first.

    The contribution of a class is its accuracy gap, if positive, times the number of its held-out images.

    Returns:
        Class indices; empty if the interval of the overall accuracy gap does not lie above zero, since the gap may then
        be noise.
    """
    if accuracy_gap(train, held_out, train_share).low <= 0:
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
    """Interval bounds of the loss gap and the accuracy gap, named `<prefix>/loss_low` and so on.

    Args:
        train: predictions of training images.
        held_out: predictions of images that the network was not trained on.
        train_share: share of the training split that `train` is, in [0, 1].
        prefix: first part of the names, such as `gap`.
    """
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
