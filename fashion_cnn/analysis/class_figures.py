"""Figures with a place for each class: of as many classes as can be read, so that none grows without end."""

from collections.abc import Sequence
from typing import TypeVar

from matplotlib.axes import Axes

MOST_SHOWN = 100

Row = TypeVar("Row")


def inches(classes: int, *, beside: float, each: float = 0.42) -> float:
    """The side of a figure with `each` inches for a class, and others `beside` them."""
    return beside + each * min(classes, MOST_SHOWN)


def topmost(rows: Sequence[Row], axes: Axes) -> Sequence[Row]:
    """The last rows, which are drawn on top: as many as can be read. Where some are left out the axes say so."""
    if len(rows) > MOST_SHOWN:
        axes.set_ylabel(f"{MOST_SHOWN} of {len(rows):,} classes")
    return rows[-MOST_SHOWN:]
