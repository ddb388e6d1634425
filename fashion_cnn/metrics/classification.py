"""Classification metrics: confusion matrix, precision and recall by class, top-k and selective accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fashion_cnn.metrics.calibration import ReliabilityDiagram, reliability_diagram
from fashion_cnn.metrics.intervals import Interval, to_json_dict, wilson_interval
from fashion_cnn.metrics.predictions import Predictions

# Fractions of the images, most confident first, at which selective accuracy is stored.
COVERAGES = (0.5, 0.8, 0.9, 0.95, 1.0)


def confusion_matrix(predictions: Predictions) -> Tensor:
    """Count the images `(C, C)` int64 by true class (row) and predicted class (column)."""
    classes = predictions.num_classes
    cell = predictions.targets * classes + predictions.predicted
    return cell.bincount(minlength=classes**2).view(classes, classes)


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 score of one class.

    Attributes:
        name: the class name.
        precision: the fraction of the images predicted as the class that belong to it; None without such predictions.
        recall: the fraction of the images of the class that are predicted as such; None without such images.
        f1: the harmonic mean of precision and recall.
        images: the number of images of the class.
    """

    name: str
    precision: Interval | None
    recall: Interval | None
    f1: float
    images: int


def metrics_by_class(predictions: Predictions, class_names: Sequence[str]) -> list[ClassMetrics]:
    """Compute precision, recall and F1 score of each class, in class order.

    Args:
        predictions: predictions of a split.
        class_names: names of all classes.
    """
    counts = confusion_matrix(predictions)
    rows = zip(class_names, counts.diag().tolist(), counts.sum(0).tolist(), counts.sum(1).tolist(), strict=True)
    return [
        ClassMetrics(
            name,
            precision=_proportion(hits, predicted),
            recall=_proportion(hits, images),
            f1=2 * hits / (predicted + images) if predicted + images else 0.0,
            images=images,
        )
        for name, hits, predicted, images in rows
    ]


def _proportion(hits: int, count: int) -> Interval | None:
    return wilson_interval(hits / count, count) if count else None


def top_k_accuracy(predictions: Predictions, k: int) -> float:
    """Fraction of the images whose target is among the `k` most probable classes."""
    top_classes = predictions.logits.topk(min(k, predictions.num_classes), dim=1).indices
    return (top_classes == predictions.targets[:, None]).any(dim=1).double().mean().item()


def selective_accuracy(predictions: Predictions) -> Tensor:
    """Accuracy `(N,)` on the 1, 2, … N images of highest confidence.

    El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", 2010.
    """
    by_confidence = predictions.confidence.sort(descending=True, stable=True).indices
    return predictions.correct[by_confidence].double().cumsum(0) / torch.arange(1, len(predictions) + 1)


@dataclass(frozen=True)
class ClassificationMetrics:
    """Classification metrics of a split.

    Attributes:
        accuracy: the accuracy with its interval.
        loss: the mean cross-entropy in nats.
        top2_accuracy: the top-2 accuracy.
        selective_accuracy: `(N,)`, the accuracy on the 1, 2, … N images of highest confidence.
        reliability: accuracy and confidence by confidence bin.
        classes: the metrics of each class.
        confusion: `(C, C)`, the confusion matrix.
    """

    accuracy: Interval
    loss: float
    top2_accuracy: float
    selective_accuracy: Tensor
    reliability: ReliabilityDiagram
    classes: list[ClassMetrics]
    confusion: Tensor

    @property
    def macro_f1(self) -> float:
        """Mean F1 score of the classes that have images or predictions, as in scikit-learn and torchmetrics."""
        scores = [row.f1 for row in self.classes if row.recall is not None or row.precision is not None]
        return sum(scores) / len(scores)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, as stored in `evaluation.json`."""
        images = len(self.selective_accuracy)
        calibration_error = self.reliability.calibration_error_interval()
        return {
            "images": images,
            "accuracy": self.accuracy.estimate,
            "accuracy_low": self.accuracy.low,
            "accuracy_high": self.accuracy.high,
            "loss": self.loss,
            "top2_accuracy": self.top2_accuracy,
            "macro_f1": self.macro_f1,
            "calibration_error": calibration_error.estimate,
            "calibration_error_low": calibration_error.low,
            "calibration_error_high": calibration_error.high,
            "selective_accuracy": {
                str(coverage): self.selective_accuracy[round(coverage * images) - 1].item() for coverage in COVERAGES
            },
            "classes": [to_json_dict(row) for row in self.classes],
            "confusion": self.confusion.tolist(),
        }


def classification_metrics(predictions: Predictions, class_names: Sequence[str]) -> ClassificationMetrics:
    """Compute the classification metrics of a split.

    Args:
        predictions: predictions of at least one image.
        class_names: names of all classes.
    """
    return ClassificationMetrics(
        accuracy=wilson_interval(int(predictions.correct.sum()) / len(predictions), len(predictions)),
        loss=predictions.losses.double().mean().item(),
        top2_accuracy=top_k_accuracy(predictions, 2),
        selective_accuracy=selective_accuracy(predictions),
        reliability=reliability_diagram(predictions),
        classes=metrics_by_class(predictions, class_names),
        confusion=confusion_matrix(predictions),
    )
