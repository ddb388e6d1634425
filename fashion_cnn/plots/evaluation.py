"""Plots of an evaluation: precision and recall, selective accuracy, confusion matrix, reliability diagram, search."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from fashion_cnn.metrics.calibration import ReliabilityDiagram
from fashion_cnn.metrics.classification import ClassMetrics
from fashion_cnn.metrics.intervals import Interval
from fashion_cnn.metrics.ranking import NETWORK
from fashion_cnn.plots.style import LINE_COLORS, MAX_CLASSES, escape_label, last_rows, plot_intervals_by_class

# Baseline of the search that is drawn beside the network, class by class.
_BASELINE = "pixels, cosine"


def plot_by_class(classes: Sequence[ClassMetrics], axes: Axes, *, title: str) -> None:
    """Draw precision and recall of each class that has images, the class of lowest F1 score on top."""
    with_images = [row for row in classes if row.images]
    rows = last_rows(sorted(with_images, key=lambda row: row.f1, reverse=True), axes)
    plot_intervals_by_class(
        [row.name for row in rows],
        {"precision": [row.precision for row in rows], "recall": [row.recall for row in rows]},
        axes,
        colors=LINE_COLORS[:2],
        title=f"Precision and recall by class, {title}",
        xlabel="precision and recall, ",
    )


def plot_selective(accuracy: Tensor, axes: Axes, *, title: str) -> None:
    """Draw selective accuracy over coverage.

    Args:
        accuracy: `(N,)`, the accuracy on the 1 … N images of highest confidence.
        axes: the axes to draw on.
        title: the name of the split.
    """
    coverage = np.arange(1, len(accuracy) + 1) / len(accuracy) * 100
    # Accuracy on a few images is too noisy to draw.
    mask = coverage >= 5
    axes.plot(coverage[mask], accuracy.numpy()[mask] * 100, color=LINE_COLORS[0])
    axes.grid(alpha=0.3)
    axes.set(
        xlabel="coverage: the most confident % of the images",
        ylabel="accuracy on these (%)",
        title=f"Accuracy against coverage, {title}",
    )


def plot_confusion(counts: Tensor, class_names: Sequence[str], axes: Axes, *, title: str) -> None:
    """Draw a confusion matrix `(C, C)`, each row in percent of the images of that class.

    Cells under 0.05% have no number, and the title says so. With more than `MAX_CLASSES` classes there are no names and
    numbers at all.
    """
    fractions = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    # The square root makes errors of 1% visible beside a diagonal of 90%.
    axes.imshow(fractions.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{title} (% of each row)")
    if len(class_names) > MAX_CLASSES:
        return
    axes.set_title(f"{title} (% of each row; blank: 0.0)")
    for row, column in torch.nonzero(fractions >= 0.0005).tolist():
        fraction = fractions[row, column].item()
        color = "white" if fraction > 0.3 else "black"
        axes.text(column, row, f"{fraction * 100:.1f}", ha="center", va="center", color=color, fontsize=8)
    ticks, labels = range(len(class_names)), [*map(escape_label, class_names)]
    axes.set_xticks(ticks, labels, rotation=45, ha="right")
    axes.set_yticks(ticks, labels)


def plot_reliability(diagram: ReliabilityDiagram, axes: Axes, *, title: str, color: str) -> None:
    """Draw accuracy over confidence; perfect calibration is the diagonal."""
    counts, confidence, accuracy = (values.numpy() for values in (diagram.counts, diagram.confidence, diagram.accuracy))
    bins, filled = len(counts), counts > 0
    axes.bar(
        (np.arange(bins) + 0.5) / bins,
        counts / counts.sum(),
        width=0.9 / bins,
        color="#BBBBBB",
        label="fraction of the images",
    )
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="perfect calibration")
    axes.plot(confidence[filled], accuracy[filled], marker="o", color=color, label="accuracy")
    error = diagram.calibration_error_interval()
    axes.set(
        xlabel="confidence",
        ylabel="accuracy; fraction of the images",
        # Whole markers at a confidence or an accuracy of 1.
        xlim=(0, 1.03),
        ylim=(0, 1.03),
        title=f"{title}\ncalibration error {error.estimate:.4f} (95%: {error.low:.4f} to {error.high:.4f})",
    )
    # Below the axes: the curve may pass through any of their corners.
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize="small")


def plot_precision_by_class(search: Mapping[str, Any], axes: Axes, *, title: str) -> None:
    """Draw precision@1 of each class for the network and the pixel baseline, the worst class of the network on top.

    Args:
        search: stored `LabelledSearchMetrics` by the name of the embedding, `NETWORK` included.
        axes: the axes to draw on.
        title: the name of the search.
    """

    def interval(embedding: str, class_name: str) -> Interval:
        stored = search[embedding]["by_class"][class_name]["precision"]["1"]
        return Interval(stored["value"], stored["low"], stored["high"])

    def precision(class_name: str) -> float:
        return interval(NETWORK, class_name).estimate

    names = last_rows(sorted(search[NETWORK]["by_class"], key=precision, reverse=True), axes)
    embeddings = [name for name in (NETWORK, _BASELINE) if name in search]
    plot_intervals_by_class(
        names,
        {embedding: [interval(embedding, name) for name in names] for embedding in embeddings},
        axes,
        colors=(LINE_COLORS[0], "#999999"),
        title=title,
        xlabel="precision@1, ",
    )


def plot_precision_at_k(search: Mapping[str, Any], axes: Axes, *, title: str) -> None:
    """Draw precision@k over k for each embedding, and that of a random order as a dashed line.

    Args:
        search: stored `LabelledSearchMetrics` by the name of the embedding.
        axes: the axes to draw on.
        title: the name of the search.
    """
    for number, (embedding, metrics) in enumerate(search.items()):
        curve = metrics["overall"]["curve"]
        axes.plot(
            range(1, len(curve) + 1),
            np.array(curve) * 100,
            color=LINE_COLORS[number % len(LINE_COLORS)],
            label=embedding,
        )
    chance = next(iter(search.values()))["chance"] * 100
    axes.axhline(chance, color="0.5", linestyle="--", linewidth=1, label="chance")
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.grid(alpha=0.3)
    axes.set(xlabel="k", ylabel="precision@k (%)", title=title)
    axes.legend(frameon=False, fontsize=8)
