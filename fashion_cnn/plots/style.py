"""Shared parts of plots: labels, sizes, intervals by class, grids of thumbnails, and saving to a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fashion_cnn.metrics.intervals import Interval
from fashion_cnn.runs.files import open_atomically

# Largest number of classes that one plot shows.
MAX_CLASSES = 100
# Colours of lines that are told apart by their legend, after Okabe and Ito.
LINE_COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#7B2FBE",
    "#E69F00",
    "#56B4E9",
    "#8C5A3C",
    "#A0A000",
    "#E0218A",
)
# Characters of a title of a figure for each column of thumbnails.
_TITLE_CHARACTERS = 14
Row = TypeVar("Row")


def escape_label(name: str) -> str:
    """Escape a class or file name so that Matplotlib draws it literally: text between two `$` is parsed as math."""
    # A file name that is not valid UTF-8 contains surrogates, which fonts cannot draw.
    return name.encode(errors="backslashreplace").decode().replace("$", r"\$")


def figure_inches(classes: int, *, margin: float, per_class: float = 0.42) -> float:
    """Side length of a figure in inches that grows with the number of classes, up to `MAX_CLASSES`."""
    return margin + per_class * min(classes, MAX_CLASSES)


def last_rows(rows: Sequence[Row], axes: Axes) -> Sequence[Row]:
    """Keep the last `MAX_CLASSES` rows, which are drawn on top, and label the axes if some are dropped."""
    if len(rows) > MAX_CLASSES:
        axes.set_ylabel(f"{MAX_CLASSES} of {len(rows):,} classes")
    return rows[-MAX_CLASSES:]


def plot_intervals_by_class(
    class_names: Sequence[str],
    series: Mapping[str, Sequence[Interval | None]],
    axes: Axes,
    *,
    colors: Sequence[str],
    title: str,
    xlabel: str,
) -> None:
    """Draw estimates in percent with their 95% intervals, one row per class, bottom to top.

    Args:
        class_names: the row labels.
        series: at most two sequences of intervals by legend label, each with one entry per class; None draws nothing.
        axes: the axes to draw on.
        colors: the colour of each series.
        title: the title of the axes.
        xlabel: the quantity on the x axis.
    """
    for offset, color, (label, intervals) in zip((0.15, -0.15), colors, series.items(), strict=False):
        rows = [(row, interval) for row, interval in enumerate(intervals) if interval is not None]
        if rows:
            positions = np.array([row for row, _ in rows]) + offset
            bounds = [(interval.estimate, interval.low, interval.high) for _, interval in rows]
            estimates, lows, highs = np.array(bounds).T * 100
            errors = [estimates - lows, highs - estimates]
            axes.errorbar(estimates, positions, xerr=errors, fmt="o", color=color, capsize=3, label=label)
    axes.set_yticks(range(len(class_names)), [*map(escape_label, class_names)])
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel=f"{xlabel}% (bars: 95% intervals)", title=title)
    axes.legend(frameon=False, loc="lower left")


def plot_thumbnails(images: Tensor, captions: Sequence[str], *, title: str, columns: int = 6) -> Figure:
    """Draw a grid of captioned images, row by row.

    All images share one Axes: the layout of one Axes per image takes ten times as long.

    Args:
        images: `(N, C, H, W)` uint8, with one or three channels.
        captions: one text per image.
        title: the title above the grid.
        columns: the largest number of images in a row. A sheet with fewer images is narrower, as far as its title fits.
    """
    rows = max(1, -(-len(images) // columns))
    columns = max(min(columns, len(images)), min(columns, -(-len(title) // _TITLE_CHARACTERS)))
    figure = Figure(figsize=(1.5 * columns, 1.9 * rows + 0.5), layout="constrained")
    axes = figure.subplots()
    for number, (image, caption) in enumerate(zip(images, captions, strict=False)):
        row, column = divmod(number, columns)
        # A cell is 1 wide and 1.25 high, which leaves room for captions of three lines.
        left, bottom = column + 0.05, -1.25 * row
        extent = (left, left + 0.9, bottom, bottom + 0.9)
        axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, extent=extent)
        axes.text(left + 0.45, bottom + 0.93, escape_label(caption), fontsize=8, ha="center", va="bottom")
    # A single row that is narrower than its title is centred below it.
    margin = max(0, columns - len(images)) / 2
    axes.set(xlim=(-margin, columns - margin), ylim=(-1.25 * (rows - 1), 1.25))
    axes.set_axis_off()
    figure.suptitle(title)
    return figure


def add_subtitle(figure: Figure, text: str) -> None:
    """Write a line, such as the name of the run, below the title of a figure, which may be that of its only Axes."""
    if not figure.get_suptitle() and len(figure.axes) == 1:
        (axes,) = figure.axes
        figure.suptitle(axes.get_title())
        axes.set_title("")
    figure.suptitle("\n".join(filter(None, (figure.get_suptitle(), escape_label(text)))))


def save_figure(figure: Figure, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a figure atomically, in the format of the suffix of `path`.

    Args:
        figure: the figure to save.
        path: the file to write or replace.
        metadata: texts to embed in the file.

    Raises:
        ValueError: if Matplotlib does not know the format.
    """
    with open_atomically(path) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", dpi=110, metadata=metadata)
