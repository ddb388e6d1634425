"""Grids of images with a caption each."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from fashion_cnn.analysis.labels import as_label


def plot_thumbnails(images: Tensor, captions: Sequence[str], *, title: str, columns: int = 8) -> Figure:
    """Draw images `(N, C, H, W)` uint8, of one or three channels, row by row, each below its caption."""
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows + 0.5), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, caption in zip(figure.axes, images, captions, strict=False):
        axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(as_label(caption), fontsize=8)
    figure.suptitle(title)
    return figure
