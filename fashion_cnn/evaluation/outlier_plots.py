"""Histograms of a network's scores inside and outside its classes."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fashion_cnn.evaluation.outliers import SCORES, Outliers
from fashion_cnn.evaluation.separation import Separation

_BINS = 40
_LABELS = {"confidence": "confidence", "energy": "negative energy"}


def plot_outliers(outliers: Outliers) -> Figure:
    """A row a score, a column a set of images outside, each with the AUROC."""
    names = list(outliers.outside)
    figure = Figure(figsize=(2.6 * len(names) + 0.6, 2.4 * len(SCORES) + 0.4), layout="constrained")
    grid = figure.subplots(len(SCORES), len(names), squeeze=False, sharex="row")
    for row, score in zip(grid, SCORES, strict=True):
        for axes, name in zip(row, names, strict=True):
            said = name.replace("_", " ").capitalize()
            plot_separation(outliers.separation(name, score), axes, title=said, score=_LABELS[score])
        row[0].set_ylabel("share of the images (%)")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return figure


def plot_separation(result: Separation, axes: Axes, *, title: str, score: str) -> None:
    """Draw both histograms of a score over one scale."""
    ends = [(values.min().item(), values.max().item()) for values in (result.inside, result.outside)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    for values, style in (
        (result.inside, {"color": "#BBBBBB", "label": "inside", "fill": True}),
        (result.outside, {"color": "#D55E00", "label": "outside"}),
    ):
        counts, _ = np.histogram(values.numpy(), edges)
        axes.stairs(100 * counts / len(values), edges, **style)
    axes.set(xlabel=score, title=f"{title}\nAUROC {result.auroc:.3f}")
    axes.title.set_fontsize(10)
