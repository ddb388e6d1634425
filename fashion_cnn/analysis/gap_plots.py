"""The gap over the epochs with its 95% band, and class by class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from fashion_cnn.analysis.class_figures import topmost
from fashion_cnn.analysis.gap import Gap
from fashion_cnn.analysis.history import History
from fashion_cnn.analysis.labels import as_label

COLOR = "#CC79A7"
# The units that the gaps are drawn in, and what they are multiplied by.
_UNITS = {"accuracy": ("points", 100.0), "loss": ("nats", 1.0)}


def plot_gap(history: History, quantity: str, axes: Axes) -> None:
    """Draw the gap of `quantity`, loss or accuracy, over the epochs; above zero is better on the training images."""
    unit, scale = _UNITS[quantity]
    low, high = (history[f"gap/{quantity}_{end}"] * scale for end in ("low", "high"))
    axes.fill_between(history.epochs, low, high, color=COLOR, alpha=0.25, linewidth=0, label="95% interval")
    axes.plot(
        history.epochs, history[f"gap/{quantity}"] * scale, color=COLOR, marker=".", label="gap, train to validation"
    )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel(f"{quantity} gap ({unit})")


def plot_gap_by_class(gaps: Sequence[Gap | None], class_names: Sequence[str], axes: Axes, *, total: Gap) -> None:
    """Draw the accuracy gap of each class with its interval, the widest on top, beside that of all images."""
    measured = [(gap, name) for gap, name in zip(gaps, class_names, strict=True) if gap]
    known = topmost(sorted(measured, key=lambda pair: pair[0].estimate), axes)
    estimates = np.array([gap.estimate for gap, _ in known]) * 100
    ends = np.array([(gap.estimate - gap.low, gap.high - gap.estimate) for gap, _ in known]).T * 100
    axes.barh(range(len(known)), estimates, xerr=ends, color=COLOR, ecolor="#555555", capsize=3)
    axes.set_yticks(range(len(known)), [as_label(name) for _, name in known])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(total.estimate * 100, color="black", linestyle="--", linewidth=0.8, label="all classes")
    axes.set_xlabel("accuracy gap, train to validation (points, with 95% interval)")
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3, axis="x")
