"""Figures of a training, drawn from what the run stored: curves, gap, calibration, mistakes, data map."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fashion_cnn.analysis.dynamics import REGIONS, Dynamics, likely_label_errors, most_confident_errors, regions
from fashion_cnn.analysis.history import History
from fashion_cnn.data import ImageDataModule, InMemoryDataset
from fashion_cnn.metrics.calibration import reliability_diagram
from fashion_cnn.metrics.classification import confusion_matrix
from fashion_cnn.metrics.gap import accuracy_gap, accuracy_gap_by_class
from fashion_cnn.metrics.intervals import Interval
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.plots.evaluation import plot_confusion, plot_reliability
from fashion_cnn.plots.style import escape_label, figure_inches, last_rows, plot_thumbnails

_IMAGES_SHOWN = 32
# Told apart without colour too: train is dashed. The colours are Okabe and Ito's.
STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "#0072B2", "linestyle": "--", "label": "train probe"},
    "val": {"color": "#D55E00", "linestyle": "-", "label": "validation"},
    "running": {"color": "#999999", "linestyle": ":", "label": "running training average"},
}
COLOR = "#CC79A7"
# The units that the gaps are drawn in, and what they are multiplied by.
_GAP_UNITS = {"accuracy": ("points", 100.0), "loss": ("nats", 1.0)}
_REGION_COLORS = {"easy": "#009E73", "ambiguous": "#E69F00", "hard": "#D55E00"}


def plot_predictions(train: Predictions, val: Predictions, data: ImageDataModule) -> dict[str, Figure]:
    """What the weights of one epoch do, by the figures' names."""
    names = data.class_names
    return {
        "gap_by_class": gap_by_class(train, val, names),
        "confusion": confusion(train, val, names),
        "reliability": calibration(train, val),
        "mistakes": worst_mistakes(val, data.val_split, names),
    }


def plot_training(
    history: History, dynamics: Dynamics | None, data: ImageDataModule, best_epoch: int
) -> dict[str, Figure]:
    """How the training went, by the figures' names; each where it was recorded."""
    figures = {}
    if data.val_size:
        figures["gap"] = gap_over_epochs(history, best_epoch)
    if dynamics is not None:
        figures["cartography"] = cartography(dynamics)
        figures["label_errors"] = label_errors(dynamics, data.train_split, data.class_names)
    return figures


def gap_over_epochs(history: History, best_epoch: int) -> Figure:
    """The gap in loss above the gap in accuracy, each with its band."""
    return over_epochs(
        lambda quantity, axes: plot_gap(history, quantity, axes),
        title="Gap between train probe and validation",
        best_epoch=best_epoch,
    )


def gap_by_class(train: Predictions, val: Predictions, class_names: Sequence[str]) -> Figure:
    """The accuracy gap class by class."""
    figure = Figure(figsize=(7, figure_inches(len(class_names), beside=1.2, each=0.35)), layout="constrained")
    gaps = accuracy_gap_by_class(train, val)
    plot_gap_by_class(gaps, class_names, figure.subplots(), total=accuracy_gap(train, val))
    return figure


def confusion(train: Predictions, val: Predictions, class_names: Sequence[str]) -> Figure:
    """The confusion matrices of train probe and validation, side by side."""
    side = figure_inches(len(class_names), beside=2.4)
    figure = Figure(figsize=(2 * side, side), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_confusion(confusion_matrix(train), class_names, left, title="train probe")
    plot_confusion(confusion_matrix(val), class_names, right, title="validation")
    return figure


def calibration(train: Predictions, val: Predictions) -> Figure:
    """The reliability diagrams of train probe and validation, side by side."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_reliability(reliability_diagram(train), left, title="train probe", color=STYLES["train"]["color"])
    plot_reliability(reliability_diagram(val), right, title="validation", color=STYLES["val"]["color"])
    figure.suptitle("Is it right as often as it is sure?")
    return figure


def worst_mistakes(val: Predictions, split: InMemoryDataset, class_names: Sequence[str]) -> Figure:
    """The validation images that are classified wrong with the most confidence."""
    chosen = most_confident_errors(val, _IMAGES_SHOWN)
    shown = (column[chosen].tolist() for column in (val.targets, val.predicted, val.confidence))
    captions = [
        f"{class_names[target]}\n→ {class_names[predicted]}\n{confidence:.1%} sure"
        for target, predicted, confidence in zip(*shown, strict=True)
    ]
    return plot_thumbnails(
        split.images_at(val.indices[chosen]), captions, title="Validation images: the most confident mistakes"
    )


def cartography(dynamics: Dynamics) -> Figure:
    """The map of the training images: easy, ambiguous, hard."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    plot_map(dynamics, figure.subplots())
    figure.suptitle("How the training images were learned")
    return figure


def label_errors(dynamics: Dynamics, split: InMemoryDataset, class_names: Sequence[str]) -> Figure:
    """The training images whose label is likeliest to be wrong."""
    chosen = likely_label_errors(dynamics)[:_IMAGES_SHOWN]
    shown = zip(dynamics.targets[chosen].tolist(), dynamics.confidence[chosen].tolist(), strict=True)
    captions = [f"{class_names[target]}\nconfidence {confidence:.2f}" for target, confidence in shown]
    return plot_thumbnails(
        split.images_at(dynamics.indices[chosen]), captions, title="Training images: is this label right?"
    )


def plot_curves(history: History, *, title: str, best_epoch: int | None = None) -> Figure:
    """Draw both charts; `best_epoch` (from 1) is marked."""
    return over_epochs(lambda quantity, axes: plot_curve(history, quantity, axes), title=title, best_epoch=best_epoch)


def over_epochs(draw: Callable[[str, Axes], None], *, title: str, best_epoch: int | None = None) -> Figure:
    """A chart that `draw` fills for the loss, above one for the accuracy; `best_epoch` (from 1) is marked."""
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    for quantity, axes in (("loss", loss), ("accuracy", accuracy)):
        draw(quantity, axes)
        if best_epoch is not None:
            axes.axvline(best_epoch, color="black", linewidth=0.8, alpha=0.5, label=f"best epoch ({best_epoch})")
        axes.grid(alpha=0.3)
    loss.legend(frameon=False)
    accuracy.set_xlabel("epoch")
    accuracy.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(escape_label(title))
    return figure


def plot_curve(history: History, quantity: str, axes: Axes) -> None:
    """Draw one quantity of train, validation and the running average over the epochs."""
    for prefix, style in STYLES.items():
        values = history[f"{prefix}/{quantity}"]
        if np.isfinite(values).any():
            axes.plot(history.epochs, values, marker="." if len(values) < 40 else None, **style)
    axes.set_ylabel(quantity)


def plot_gap(history: History, quantity: str, axes: Axes) -> None:
    """Draw the gap of `quantity`, loss or accuracy, over the epochs; above zero is better on the training images."""
    unit, scale = _GAP_UNITS[quantity]
    low, high = (history[f"gap/{quantity}_{end}"] * scale for end in ("low", "high"))
    axes.fill_between(history.epochs, low, high, color=COLOR, alpha=0.25, linewidth=0, label="95% interval")
    axes.plot(
        history.epochs, history[f"gap/{quantity}"] * scale, color=COLOR, marker=".", label="gap, train to validation"
    )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel(f"{quantity} gap ({unit})")


def plot_gap_by_class(
    gaps: Sequence[Interval | None], class_names: Sequence[str], axes: Axes, *, total: Interval
) -> None:
    """Draw the accuracy gap of each class with its interval, the widest on top, beside that of all images."""
    measured = [(gap, name) for gap, name in zip(gaps, class_names, strict=True) if gap]
    known = last_rows(sorted(measured, key=lambda pair: pair[0].estimate), axes)
    estimates = np.array([gap.estimate for gap, _ in known]) * 100
    ends = np.array([(gap.estimate - gap.low, gap.high - gap.estimate) for gap, _ in known]).T * 100
    axes.barh(range(len(known)), estimates, xerr=ends, color=COLOR, ecolor="#555555", capsize=3)
    axes.set_yticks(range(len(known)), [escape_label(name) for _, name in known])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(total.estimate * 100, color="black", linestyle="--", linewidth=0.8, label="all classes")
    axes.set_xlabel("accuracy gap, train to validation (points, with 95% interval)")
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3, axis="x")


def plot_map(dynamics: Dynamics, axes: Axes, *, most: int = 10_000) -> None:
    """Draw confidence over variability, coloured by region; of more than `most` images an even sample."""
    region = regions(dynamics)
    sample = torch.arange(0, len(region), max(1, -(-len(region) // most)))
    for number, name in enumerate(REGIONS):
        shown = sample[region[sample] == number]
        share = (region == number).double().mean().item()
        axes.scatter(
            dynamics.variability[shown].numpy(),
            dynamics.confidence[shown].numpy(),
            s=4,
            alpha=0.4,
            linewidths=0,
            color=_REGION_COLORS[name],
            label=f"{name} ({share:.1%})",
        )
    axes.set(
        xlabel="variability (standard deviation of the label's probability)",
        ylabel="confidence (its mean)",
        ylim=(0, 1),
    )
    axes.legend(frameon=False, markerscale=3)
