"""Metrics of a classified split beyond loss and accuracy: by class, top-k, selective, confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fashion_cnn.metrics.calibration import reliability_diagram
from fashion_cnn.metrics.intervals import Interval, to_json_dict, wilson_interval
from fashion_cnn.metrics.predictions import Predictions

# Of the images that it is surest of, so large a share is answered.
COVERAGES = (0.5, 0.8, 0.9, 0.95, 1.0)


def confusion_matrix(predictions: Predictions) -> Tensor:
    """Counts `(C, C)` int64: row true class, column predicted class."""
    classes = predictions.num_classes
    cell = predictions.targets * classes + predictions.predicted
    return cell.bincount(minlength=classes**2).view(classes, classes)


def _proportion(hits: int, count: int) -> Interval | None:
    return wilson_interval(hits / count, count) if count else None


@dataclass(frozen=True)
class ClassMetrics:
    """How well one class is recognised.

    precision: of the images taken for it, those that are. recall: of its images, those taken for it. f1: their
    harmonic mean. images: how many there are.
    """

    name: str
    precision: Interval | None
    recall: Interval | None
    f1: float
    images: int


def metrics_by_class(predictions: Predictions, class_names: Sequence[str]) -> list[ClassMetrics]:
    """The figures of each class, in the order of the classes."""
    counts = confusion_matrix(predictions)
    rows = zip(class_names, counts.diag().tolist(), counts.sum(0).tolist(), counts.sum(1).tolist(), strict=True)
    return [
        ClassMetrics(
            name,
            precision=_proportion(hits, taken),
            recall=_proportion(hits, images),
            f1=2 * hits / (taken + images) if taken + images else 0.0,
            images=images,
        )
        for name, hits, taken, images in rows
    ]


def top_k_accuracy(predictions: Predictions, most: int) -> float:
    """The share of the images whose class is among the `most` likeliest."""
    likeliest = predictions.logits.topk(min(most, predictions.num_classes), dim=1).indices
    return (likeliest == predictions.targets[:, None]).any(dim=1).double().mean().item()


def selective_accuracy(predictions: Predictions) -> Tensor:
    """Accuracy `(N,)` on the 1, 2, … N images that the network is surest of.

    El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", 2010.
    """
    surest_first = predictions.confidence.sort(descending=True, stable=True).indices
    return predictions.correct[surest_first].double().cumsum(0) / torch.arange(1, len(predictions) + 1)


def classification_metrics(predictions: Predictions, class_names: Sequence[str]) -> dict[str, Any]:
    """All figures of a split by name, as they are stored: numbers, a list of classes, the confusion matrix."""
    accuracy = wilson_interval(int(predictions.correct.sum()) / len(predictions), len(predictions))
    classes = metrics_by_class(predictions, class_names)
    selective = selective_accuracy(predictions)
    return {
        "images": len(predictions),
        "accuracy": accuracy.estimate,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "loss": predictions.losses.double().mean().item(),
        "top2_accuracy": top_k_accuracy(predictions, 2),
        "macro_f1": sum(row.f1 for row in classes) / len(classes),
        "calibration_error": reliability_diagram(predictions).expected_calibration_error,
        "selective_accuracy": {
            str(coverage): selective[round(coverage * len(predictions)) - 1].item() for coverage in COVERAGES
        },
        "classes": [to_json_dict(row) for row in classes],
        "confusion": confusion_matrix(predictions).tolist(),
    }
