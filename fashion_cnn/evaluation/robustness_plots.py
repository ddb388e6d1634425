"""A figure of what the corruptions do to a network's accuracy."""

import numpy as np
from matplotlib.axes import Axes

from fashion_cnn.evaluation.corruptions import SEVERITIES
from fashion_cnn.evaluation.robustness import CorruptionErrors, Robustness


def plot_robustness(result: Robustness, axes: Axes, *, title: str, errors: CorruptionErrors | None = None) -> None:
    """Draw a heat map of the accuracies in percent: a row a corruption, a column a severity, the clean one on top.

    Means stand at the right and at the bottom. errors: for a last column, as percent of the baseline's.
    """
    rows = {"clean": (result.clean,) * len(SEVERITIES), **result.accuracy}
    accuracy = 100 * np.array([*rows.values(), np.mean([*result.accuracy.values()], axis=0)])
    accuracy = np.column_stack([accuracy, accuracy.mean(axis=1)])
    headings = [*map(str, SEVERITIES), "mean"]
    if errors:
        headings.append("% of baseline's\nerrors")
        for row, error in enumerate([*errors.by_corruption.values(), errors.mean], start=1):
            axes.text(len(SEVERITIES) + 1, row, f"{error:.0f}", ha="center", va="center", fontsize=9)
        accuracy = np.column_stack([accuracy, np.full(len(accuracy), np.nan)])
    axes.imshow(accuracy, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(accuracy):
        if np.isfinite(value) and (row > 0 or column == 0):
            # The clean accuracy knows no severities: once, in the middle of them and their mean.
            place = column if row else len(SEVERITIES) / 2
            color = "white" if value > 60 else "black"
            axes.text(place, row, f"{value:.1f}", ha="center", va="center", color=color, fontsize=9)
    for part_off in (0.5, len(rows) - 0.5):
        axes.axhline(part_off, color="white", linewidth=4)
    axes.axvline(len(SEVERITIES) - 0.5, ymax=1 - 1 / (len(rows) + 1), color="white", linewidth=4)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(range(len(headings)), headings)
    axes.set_yticks(range(len(rows) + 1), [*map(_said, rows), "Mean"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("severity", x=len(SEVERITIES) / 2 / len(headings))
    axes.set_title(title)


def _said(name: str) -> str:
    return name.replace("_", " ").capitalize()
