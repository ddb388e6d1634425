"""Loss above accuracy over the epochs, train and validation on each."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fashion_cnn.analysis.history import History
from fashion_cnn.analysis.labels import as_label

# Told apart without colour too: train is dashed. The colours are Okabe and Ito's.
STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "#0072B2", "linestyle": "--", "label": "train probe"},
    "val": {"color": "#D55E00", "linestyle": "-", "label": "validation"},
    "running": {"color": "#999999", "linestyle": ":", "label": "running training average"},
}


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
    figure.suptitle(as_label(title))
    return figure


def plot_curve(history: History, quantity: str, axes: Axes) -> None:
    """Draw one quantity of train, validation and the running average over the epochs."""
    for prefix, style in STYLES.items():
        values = history[f"{prefix}/{quantity}"]
        if np.isfinite(values).any():
            axes.plot(history.epochs, values, marker="." if len(values) < 40 else None, **style)
    axes.set_ylabel(quantity)
