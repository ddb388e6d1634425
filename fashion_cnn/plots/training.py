"""Plots of a training run: curves, generalisation gap, confusion matrix, calibration, errors and data map."""

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
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.plots.evaluation import plot_confusion, plot_reliability
from fashion_cnn.plots.style import escape_label, figure_inches, last_rows, plot_thumbnails

_THUMBNAILS = 24
_MIN_OBSERVATIONS = 2
# Largest number of points in the data map.
_MAX_POINTS = 10_000
# Line styles distinguish the splits without colour too. The colours are those of Okabe and Ito.
STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "#0072B2", "linestyle": "--", "label": "train probe"},
    "val": {"color": "#D55E00", "linestyle": "-", "label": "validation"},
    "running": {"color": "#999999", "linestyle": ":", "label": "running training average"},
}
GAP_COLOR = "#CC79A7"
# Axis label and scale of each quantity.
_QUANTITIES = {"accuracy": ("accuracy (%)", 100.0), "loss": ("loss (cross-entropy, nats)", 1.0)}
# Unit and scale of the gap of each quantity.
_GAP_UNITS = {"accuracy": ("points", 100.0), "loss": ("nats", 1.0)}
_REGION_COLORS = {"easy": "#009E73", "ambiguous": "#0072B2", "hard": "#D55E00"}


def plot_predictions(train: Predictions, val: Predictions, data: ImageDataModule) -> dict[str, Figure]:
    """Draw all plots of the predictions of one checkpoint, by file name without suffix."""
    names = data.class_names
    return {
        "gap_by_class": plot_gap_by_class(train, val, names, len(train) / len(data.train_split)),
        "confusion": plot_confusion_matrices(train, val, names),
        "reliability": plot_reliability_diagrams(train, val),
        "mistakes": plot_confident_errors(val, data.val_split, names),
    }


def plot_training(
    history: History, dynamics: Dynamics | None, data: ImageDataModule, best_epoch: int | None
) -> dict[str, Figure]:
    """Draw all plots of the course of the training that have data, by file name without suffix.

    The plots of single training images need at least two observations of each image on average.
    """
    plots = {}
    if data.val_size:
        plots["gap"] = plot_gap(history, best_epoch)
    if dynamics is not None and dynamics.seen.double().mean() >= _MIN_OBSERVATIONS:
        plots["cartography"] = plot_data_map(dynamics)
        plots["label_errors"] = plot_label_errors(dynamics, data.train_split, data.class_names)
    return plots


def plot_curves(
    history: History,
    *,
    title: str,
    best_epoch: int | None = None,
    rising_since: int | None = None,
    training_loss: str | None = None,
    label_smoothing: float = 0.0,
) -> Figure:
    """Draw loss and accuracy of train probe, validation and running average over the epochs, counted from 1.

    Args:
        history: the metrics of the epochs.
        title: title of the figure.
        best_epoch: the epoch that was chosen on validation, which is marked; None if none was.
        rising_since: the first epoch of a rise of the validation loss under falling training loss.
        training_loss: name of the loss that was trained, which has an axis of its own; None for the cross-entropy.
        label_smoothing: label smoothing of the training loss, which raises its running average.
    """

    def plot(quantity: str, axes: Axes) -> None:
        label, scale = _QUANTITIES[quantity]
        for prefix, style in STYLES.items():
            values = history[f"{prefix}/{quantity}"] * scale
            if not np.isfinite(values).any():
                continue
            style = {**style, "marker": "." if len(values) < 40 else None}
            is_running_loss = (prefix, quantity) == ("running", "loss")
            if is_running_loss and training_loss:
                right = axes.twinx()
                right.plot(history.epochs, values, **style)
                right.set_ylabel(f"training loss ({escape_label(training_loss)})")
                # The legend is that of the left axis.
                style["label"] = f"running average of {escape_label(training_loss)} (right axis)"
                axes.plot([], [], **style)
                continue
            if is_running_loss and label_smoothing:
                style["label"] += f", label smoothing {label_smoothing:g}"
            axes.plot(history.epochs, values, **style)
        axes.set_ylabel(label)

    return _plot_over_epochs(plot, title=title, best_epoch=best_epoch, rising_since=rising_since)


def plot_gap(history: History, best_epoch: int | None) -> Figure:
    """Draw the gap in loss and accuracy with its interval over the epochs; positive if training is better."""

    def plot(quantity: str, axes: Axes) -> None:
        unit, scale = _GAP_UNITS[quantity]
        gap, low, high = (history[f"gap/{quantity}{bound}"] * scale for bound in ("", "_low", "_high"))
        axes.fill_between(history.epochs, low, high, color=GAP_COLOR, alpha=0.25, linewidth=0, label="95% interval")
        axes.plot(history.epochs, gap, color=GAP_COLOR, marker=".", label="gap, train to validation")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel(f"{quantity} gap ({unit})")

    return _plot_over_epochs(plot, title="Gap between train probe and validation", best_epoch=best_epoch)


def _plot_over_epochs(
    plot: Callable[[str, Axes], None], *, title: str, best_epoch: int | None, rising_since: int | None = None
) -> Figure:
    figure = Figure(figsize=(7, 6.8), layout="constrained")
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    for quantity, axes in (("loss", loss), ("accuracy", accuracy)):
        plot(quantity, axes)
        if best_epoch is not None:
            axes.axvline(best_epoch, color="black", linewidth=0.8, alpha=0.5, label=f"best epoch ({best_epoch})")
        if rising_since is not None:
            label = f"validation loss rises from epoch {rising_since} on"
            last = float(axes.get_xlim()[1])
            axes.axvspan(rising_since, max(last, rising_since + 0.5), color="#D55E00", alpha=0.08, label=label)
            axes.set_xlim(right=max(last, rising_since + 0.5))
        axes.grid(alpha=0.3)
    # Above the axes: a second axis, of another training loss, would be drawn over it.
    loss.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize="small")
    accuracy.set_xlabel("epoch")
    accuracy.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(escape_label(title))
    return figure


def plot_gap_by_class(
    train: Predictions, val: Predictions, class_names: Sequence[str], train_share: float = 0.0
) -> Figure:
    """Draw the accuracy gap of each class with its interval, the widest on top, and the gap over all classes."""
    size = (7, figure_inches(len(class_names), margin=1.2, per_class=0.35))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    gaps = zip(accuracy_gap_by_class(train, val, train_share), class_names, strict=True)
    rows = last_rows(sorted(((gap, name) for gap, name in gaps if gap), key=lambda row: row[0].estimate), axes)
    estimates = np.array([gap.estimate for gap, _ in rows]) * 100
    errors = np.array([(gap.estimate - gap.low, gap.high - gap.estimate) for gap, _ in rows]).T * 100
    axes.barh(range(len(rows)), estimates, xerr=errors, color=GAP_COLOR, ecolor="#555555", capsize=3)
    axes.set_yticks(range(len(rows)), [escape_label(name) for _, name in rows])
    axes.axvline(0, color="black", linewidth=0.8)
    total = accuracy_gap(train, val).estimate * 100
    axes.axvline(total, color="black", linestyle="--", linewidth=0.8, label="all classes")
    axes.set_title("Accuracy gap by class")
    axes.set_xlabel("accuracy gap, train to validation (points, with 95% interval)")
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3, axis="x")
    return figure


def plot_confusion_matrices(train: Predictions, val: Predictions, class_names: Sequence[str]) -> Figure:
    """Draw the confusion matrices of train probe and validation side by side."""
    # With few classes, each has more room: the titles are as wide as two panels of three inches.
    side = max(3.4, figure_inches(len(class_names), margin=2.4))
    figure = Figure(figsize=(2 * side, side + 0.9))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    figure.suptitle("Confusion matrices")
    left, right = figure.subplots(1, 2)
    plot_confusion(confusion_matrix(train), class_names, left, title="train probe")
    plot_confusion(confusion_matrix(val), class_names, right, title="validation")
    return figure


def plot_reliability_diagrams(train: Predictions, val: Predictions) -> Figure:
    """Draw the reliability diagrams of train probe and validation side by side."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_reliability(reliability_diagram(train), left, title="train probe", color=STYLES["train"]["color"])
    plot_reliability(reliability_diagram(val), right, title="validation", color=STYLES["val"]["color"])
    figure.suptitle("Reliability diagram: accuracy against confidence")
    return figure


def plot_confident_errors(val: Predictions, split: InMemoryDataset, class_names: Sequence[str]) -> Figure:
    """Draw the misclassified validation images of highest confidence."""
    rows = most_confident_errors(val, _THUMBNAILS)
    columns = (values[rows].tolist() for values in (val.targets, val.predicted, val.confidence))
    captions = [
        f"true: {class_names[target]}\npredicted: {class_names[predicted]}\nconfidence {confidence:.1%}"
        for target, predicted, confidence in zip(*columns, strict=True)
    ]
    images = split.images_at(val.indices[rows])
    title = "the most confident errors" if len(rows) else "none is misclassified"
    return plot_thumbnails(images, captions, title=f"Validation images: {title}")


def plot_label_errors(dynamics: Dynamics, split: InMemoryDataset, class_names: Sequence[str]) -> Figure:
    """Draw the training images whose label is most likely wrong."""
    ranking = likely_label_errors(dynamics)
    # A label with more than half of the probability is not likely to be wrong.
    rows = ranking[dynamics.confidence[ranking] < 0.5][:_THUMBNAILS]
    columns = (values[rows].tolist() for values in (dynamics.targets, dynamics.other, dynamics.confidence))
    captions = [
        f"label: {class_names[target]}\nnetwork: {class_names[other]}\nlabel's prob. {confidence:.2f}"
        for target, other, confidence in zip(*columns, strict=True)
    ]
    images = split.images_at(dynamics.indices[rows])
    title = "Training images: likely label errors, with the label's mean probability in training"
    return plot_thumbnails(images, captions, title=title)


def plot_data_map(dynamics: Dynamics) -> Figure:
    """Draw confidence over variability, coloured by region, for an even sample of at most 10,000 training images."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    region = regions(dynamics)
    sample = torch.arange(0, len(region), max(1, -(-len(region) // _MAX_POINTS)))
    for number, name in enumerate(REGIONS):
        points = sample[region[sample] == number]
        count = int((region == number).sum())
        axes.scatter(
            dynamics.variability[points].numpy(),
            dynamics.confidence[points].numpy(),
            s=4,
            alpha=0.4,
            linewidths=0,
            color=_REGION_COLORS[name],
            label=f"{name}: {count:,} ({count / len(region):.1%})",
        )
    axes.set(
        xlabel="variability (standard deviation of the label's probability over the epochs)",
        ylabel="confidence (mean of the label's probability over the epochs)",
        ylim=(0, 1),
    )
    axes.legend(frameon=False, markerscale=3)
    figure.suptitle("Data map of the training images")
    return figure
