"""The generalization gap: how much better a network does on images it trained on, with its uncertainty."""

from collections.abc import Sequence

from fashion_cnn.metrics.intervals import Interval, newcombe_interval, welch_interval, wilson_interval
from fashion_cnn.metrics.predictions import Predictions


def accuracy_gap(train: Predictions, held_out: Predictions) -> Interval:
    """Accuracy on `train` minus accuracy on `held_out`, as a fraction in [-1, 1], with Newcombe's interval."""
    return newcombe_interval(_accuracy(train), _accuracy(held_out))


def _accuracy(predictions: Predictions) -> Interval:
    return wilson_interval(predictions.correct.double().mean().item(), len(predictions))


def loss_gap(train: Predictions, held_out: Predictions) -> Interval:
    """Mean loss on `held_out` minus mean loss on `train`, in nats, with Welch's interval."""
    return welch_interval(held_out.losses, train.losses)


def accuracy_gap_by_class(train: Predictions, held_out: Predictions) -> list[Interval | None]:
    """The accuracy gap of the images of each class, in the order of the classes; None where a split has none."""
    pairs = ((train.of_class(label), held_out.of_class(label)) for label in range(train.num_classes))
    return [accuracy_gap(ours, theirs) if len(ours) and len(theirs) else None for ours, theirs in pairs]


def largest_gap_classes(train: Predictions, held_out: Predictions) -> list[int]:
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


def gap_metrics(train: Predictions, held_out: Predictions, *, prefix: str) -> dict[str, float]:
    """The ends of the intervals of both gaps, named `<prefix>/accuracy_low` and so on."""
    gaps = {"loss": loss_gap(train, held_out), "accuracy": accuracy_gap(train, held_out)}
    return {
        f"{prefix}/{name}_{end}": value
        for name, gap in gaps.items()
        for end, value in (("low", gap.low), ("high", gap.high))
    }


def gap_by_class_metrics(train: Predictions, held_out: Predictions, class_names: Sequence[str]) -> dict[str, float]:
    """The accuracy gap of each class that both splits hold, named `gap_by_class/<class>`."""
    gaps = zip(class_names, accuracy_gap_by_class(train, held_out), strict=True)
    return {f"gap_by_class/{metric_name(name)}": gap.estimate for name, gap in gaps if gap}


def metric_name(class_name: str) -> str:
    """A class's name as part of a figure's name, where a slash would open a level of its own."""
    return class_name.replace("/", "-")
