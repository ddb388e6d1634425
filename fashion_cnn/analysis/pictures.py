"""The figures of a finished run, drawn from what it stored: no network is needed."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from fashion_cnn.analysis.calibration import plot_reliability, reliability
from fashion_cnn.analysis.cartography import likely_label_errors, plot_map
from fashion_cnn.analysis.class_figures import inches
from fashion_cnn.analysis.confusion import confusion_matrix, plot_confusion
from fashion_cnn.analysis.curves import STYLES, over_epochs
from fashion_cnn.analysis.dynamics import Dynamics
from fashion_cnn.analysis.gap import accuracy_gap, accuracy_gap_by_class
from fashion_cnn.analysis.gap_plots import plot_gap, plot_gap_by_class
from fashion_cnn.analysis.hard_examples import most_confident_mistakes
from fashion_cnn.analysis.history import History
from fashion_cnn.analysis.predictions import Predictions
from fashion_cnn.analysis.thumbnails import plot_thumbnails
from fashion_cnn.data import ImageDataModule, InMemoryDataset

_SHOWN = 32


def of_weights(train: Predictions, val: Predictions, data: ImageDataModule) -> dict[str, Figure]:
    """What the weights of one epoch do, by the figures' names."""
    names = data.class_names
    return {
        "gap_by_class": gap_by_class(train, val, names),
        "confusion": confusion(train, val, names),
        "reliability": calibration(train, val),
        "mistakes": worst_mistakes(val, data.val_split, names),
    }


def of_training(
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
    figure = Figure(figsize=(7, inches(len(class_names), beside=1.2, each=0.35)), layout="constrained")
    gaps = accuracy_gap_by_class(train, val)
    plot_gap_by_class(gaps, class_names, figure.subplots(), total=accuracy_gap(train, val))
    return figure


def confusion(train: Predictions, val: Predictions, class_names: Sequence[str]) -> Figure:
    """The confusion matrices of train probe and validation, side by side."""
    side = inches(len(class_names), beside=2.4)
    figure = Figure(figsize=(2 * side, side), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_confusion(confusion_matrix(train), class_names, left, title="train probe")
    plot_confusion(confusion_matrix(val), class_names, right, title="validation")
    return figure


def calibration(train: Predictions, val: Predictions) -> Figure:
    """The reliability diagrams of train probe and validation, side by side."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_reliability(reliability(train), left, title="train probe", color=STYLES["train"]["color"])
    plot_reliability(reliability(val), right, title="validation", color=STYLES["val"]["color"])
    figure.suptitle("Is it right as often as it is sure?")
    return figure


def worst_mistakes(val: Predictions, split: InMemoryDataset, class_names: Sequence[str]) -> Figure:
    """The validation images that are classified wrong with the most confidence."""
    chosen = most_confident_mistakes(val, _SHOWN)
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
    chosen = likely_label_errors(dynamics)[:_SHOWN]
    shown = zip(dynamics.targets[chosen].tolist(), dynamics.confidence[chosen].tolist(), strict=True)
    captions = [f"{class_names[target]}\nconfidence {confidence:.2f}" for target, confidence in shown]
    return plot_thumbnails(
        split.images_at(dynamics.indices[chosen]), captions, title="Training images: is this label right?"
    )
