"""One picture explained on one page."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fashion_cnn.analysis.labels import as_label


@dataclass(frozen=True)
class Explanation:
    """Why a network says what it says of one image.

    title: which picture, and what the network says. image `(C, H, W)` uint8: what the network sees. places `(H, W)`, 0
    to 1: Grad-CAM. attribution `(H, W)`: integrated gradients. neighbours: nearest training images `(C, H, W)` uint8
    with what stands below each, the nearest first.
    """

    title: str
    image: Tensor
    places: Tensor
    attribution: Tensor
    neighbours: Sequence[tuple[Tensor, str]]


def draw(explanation: Explanation, original: np.ndarray) -> Figure:
    """The picture as it came, `(H, W, 3)` uint8, as the network sees it, what mattered, and what is like it."""
    columns = max(4, len(explanation.neighbours))
    figure = Figure(figsize=(2.3 * columns, 5.6), layout="constrained")
    figure.suptitle(as_label(explanation.title), fontsize=12)
    upper, lower = figure.subplots(2, columns)
    for axes in (*upper, *lower):
        axes.set_axis_off()
    upper[0].imshow(original)
    upper[0].set_title("the picture", fontsize=10)
    _show(explanation.image, upper[1], "what the network sees")
    _show(explanation.image, upper[2], "where it looks (Grad-CAM)")
    upper[2].imshow(explanation.places.numpy(), cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    most = max(explanation.attribution.abs().max().item(), 1e-12)
    upper[3].imshow(explanation.attribution.numpy(), cmap="RdBu", vmin=-most, vmax=most)
    upper[3].set_title(f"for (blue), against (red)\nby up to {most:.2f}", fontsize=10)
    for axes, (image, said) in zip(lower, explanation.neighbours, strict=False):
        _show(image, axes, said)
    return figure


def _show(image: Tensor, axes: Axes, title: str) -> None:
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_title(as_label(title), fontsize=10)
