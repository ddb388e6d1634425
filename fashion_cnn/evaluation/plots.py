"""An evaluation drawn: precision and recall by class, and accuracy on what the network is sure of."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from fashion_cnn.analysis.class_figures import topmost
from fashion_cnn.analysis.labels import as_label
from fashion_cnn.evaluation.figures import ClassFigures


def plot_by_class(classes: Sequence[ClassFigures], axes: Axes, *, title: str) -> None:
    """Draw precision and recall of each class with their 95% intervals, the least recognised class on top."""
    there = [row for row in classes if row.images]
    ordered = topmost(sorted(there, key=lambda row: row.f1, reverse=True), axes)
    for offset, part, color in ((0.15, "precision", "C0"), (-0.15, "recall", "C1")):
        rows = [(place, share) for place, row in enumerate(ordered) if (share := getattr(row, part)) is not None]
        if not rows:  # None of these was ever said.
            continue
        places = np.array([place for place, _ in rows]) + offset
        values, lows, highs = np.array([(share.value, share.low, share.high) for _, share in rows]).T * 100
        axes.errorbar(values, places, xerr=[values - lows, highs - values], fmt="o", color=color, capsize=3, label=part)
    axes.set_yticks(range(len(ordered)), [as_label(row.name) for row in ordered])
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
