"""Grids of images with a caption each."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from fashion_cnn.analysis.labels import as_label


def plot_thumbnails(images: Tensor, captions: Sequence[str], *, title: str, columns: int = 8) -> Figure:
    """Draw a grid of images, row by row, each below its caption.

    All images lie in one Axes: laying out an Axes for each takes ten times as long.

    Args:
        images: `(N, C, H, W)` uint8, of one or three channels.
        captions: one for each image.
        title: above the grid.
        columns: images in a row.
    """
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.5 * columns, 1.9 * rows + 0.5), layout="constrained")
    axes = figure.subplots()
    for number, (image, caption) in enumerate(zip(images, captions, strict=False)):
        row, column = divmod(number, columns)
        # A cell is 1 wide and 1.25 high: room for captions of three lines.
        left, bottom = column + 0.05, -1.25 * row
        extent = (left, left + 0.9, bottom, bottom + 0.9)
        axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, extent=extent)
        axes.text(left + 0.45, bottom + 0.93, as_label(caption), fontsize=8, ha="center", va="bottom")
    axes.set(xlim=(0, columns), ylim=(-1.25 * (rows - 1), 1.25))
    axes.set_axis_off()
    figure.suptitle(title)
    return figure
