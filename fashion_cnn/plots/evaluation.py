"""Figures of an evaluation: precision and recall, selective accuracy, confusion matrix, reliability diagram."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from fashion_cnn.metrics.calibration import ReliabilityDiagram
from fashion_cnn.metrics.classification import ClassMetrics
from fashion_cnn.plots.style import MAX_CLASSES, escape_label, last_rows


def plot_by_class(classes: Sequence[ClassMetrics], axes: Axes, *, title: str) -> None:
    """Draw precision and recall of each class with their 95% intervals, the least recognised class on top."""
    there = [row for row in classes if row.images]
    ordered = last_rows(sorted(there, key=lambda row: row.f1, reverse=True), axes)
    for offset, part, color in ((0.15, "precision", "C0"), (-0.15, "recall", "C1")):
        rows = [(place, share) for place, row in enumerate(ordered) if (share := getattr(row, part)) is not None]
        if not rows:  # None of these was ever said.
            continue
        places = np.array([place for place, _ in rows]) + offset
        values, lows, highs = np.array([(share.estimate, share.low, share.high) for _, share in rows]).T * 100
        axes.errorbar(values, places, xerr=[values - lows, highs - values], fmt="o", color=color, capsize=3, label=part)
    axes.set_yticks(range(len(ordered)), [escape_label(row.name) for row in ordered])
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="% (bars: 95% intervals)", title=f"Precision and recall by class, {title}")
    axes.legend(frameon=False, loc="lower left")


def plot_selective(accuracy: Tensor, axes: Axes, *, title: str) -> None:
    """Draw accuracy `(N,)` on the surest 1 … N images over their share of all."""
    coverage = np.arange(1, len(accuracy) + 1) / len(accuracy) * 100
    # The first few images say little, and jump.
    shown = coverage >= 5
    axes.plot(coverage[shown], accuracy.numpy()[shown] * 100, color="C0")
    axes.grid(alpha=0.3)
    axes.set(
        xlabel="answered: the surest so many % of the images",
        ylabel="accuracy on these, %",
        title=f"Accuracy against coverage, {title}",
    )


def plot_confusion(counts: Tensor, class_names: Sequence[str], axes: Axes, *, title: str) -> None:
    """Draw a confusion matrix, each row as percent of that class's images; shares under 0.05% stay empty.

    Of more classes than can be read the matrix stands alone, without names and numbers.
    """
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    # Mistakes are rare: the square root lets a share of 1% be seen beside one of 90%.
    axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{title} (% of each row)")
    if len(class_names) > MAX_CLASSES:
        return
    for row, column in torch.nonzero(shares >= 0.0005).tolist():
        share = shares[row, column].item()
        color = "white" if share > 0.3 else "black"
        axes.text(column, row, f"{share * 100:.1f}", ha="center", va="center", color=color, fontsize=8)
    places, labels = range(len(class_names)), [*map(escape_label, class_names)]
    axes.set_xticks(places, labels, rotation=45, ha="right")
    axes.set_yticks(places, labels)


def plot_reliability(result: ReliabilityDiagram, axes: Axes, *, title: str, color: str) -> None:
    """Draw accuracy over confidence: on the diagonal a network is as often right as it claims."""
    counts, confidence, accuracy = (column.numpy() for column in (result.counts, result.confidence, result.accuracy))
    bins, filled = len(counts), counts > 0
    axes.bar(
        (np.arange(bins) + 0.5) / bins,
        counts / counts.sum(),
        width=0.9 / bins,
        color="#BBBBBB",
        label="share of the images",
    )
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="as sure as right")
    axes.plot(confidence[filled], accuracy[filled], marker="o", color=color, label="accuracy")
    axes.set(
        xlabel="confidence", xlim=(0, 1), ylim=(0, 1), title=f"{title}: error {result.expected_calibration_error:.4f}"
    )
    axes.legend(frameon=False, loc="upper left", fontsize="small")
