"""Parts that figures share: labels, sizes, grids of thumbnails, and saving to a file."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fashion_cnn.runs import write_atomically

MAX_CLASSES = 100
Row = TypeVar("Row")


def escape_label(name: str) -> str:
    """A class's or a file's name, so that Matplotlib draws it as it is: in two `$` it would see mathematics."""
    # A name that is no UTF-8 has bytes in it that are no letters.
    return name.encode(errors="backslashreplace").decode().replace("$", r"\$")


def figure_inches(classes: int, *, beside: float, each: float = 0.42) -> float:
    """The side of a figure with `each` inches for a class, and others `beside` them."""
    return beside + each * min(classes, MAX_CLASSES)


def last_rows(rows: Sequence[Row], axes: Axes) -> Sequence[Row]:
    """The last rows, which are drawn on top: as many as can be read. Where some are left out the axes say so."""
    if len(rows) > MAX_CLASSES:
        axes.set_ylabel(f"{MAX_CLASSES} of {len(rows):,} classes")
    return rows[-MAX_CLASSES:]


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
        axes.text(left + 0.45, bottom + 0.93, escape_label(caption), fontsize=8, ha="center", va="bottom")
    axes.set(xlim=(0, columns), ylim=(-1.25 * (rows - 1), 1.25))
    axes.set_axis_off()
    figure.suptitle(title)
    return figure


def save_figure(figure: Figure, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write it so that `path` holds the old figure or the new, never a part of one.

    In the format of the path's suffix; metadata: texts in the file. Raises ValueError for a format that there is not.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or "png", dpi=110, metadata=metadata)
    write_atomically(path, content.getvalue())
