"""Which classes are taken for which."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from torch import Tensor

from fashion_cnn.analysis.class_figures import MOST_SHOWN
from fashion_cnn.analysis.labels import as_label
from fashion_cnn.analysis.predictions import Predictions


def confusion_matrix(predictions: Predictions) -> Tensor:
    """Counts `(C, C)` int64: row true class, column predicted class."""
    classes = predictions.num_classes
    cell = predictions.targets * classes + predictions.predicted
    return cell.bincount(minlength=classes**2).view(classes, classes)


def plot_confusion(counts: Tensor, class_names: Sequence[str], axes: Axes, *, title: str) -> None:
    """Draw a confusion matrix, each row as percent of that class's images; shares under 0.05% stay empty.

    Of more classes than can be read the matrix stands alone, without names and numbers.
    """
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    # Mistakes are rare: the square root lets a share of 1% be seen beside one of 90%.
    axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{title} (% of each row)")
    if len(class_names) > MOST_SHOWN:
        return
    for row, column in torch.nonzero(shares >= 0.0005).tolist():
        share = shares[row, column].item()
        color = "white" if share > 0.3 else "black"
        axes.text(column, row, f"{share * 100:.1f}", ha="center", va="center", color=color, fontsize=8)
    places, labels = range(len(class_names)), [*map(as_label, class_names)]
    axes.set_xticks(places, labels, rotation=45, ha="right")
    axes.set_yticks(places, labels)
