"""The developer's charts, as numbers that a template draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_EDGES = (0, 2, 4, 6, 8, 10, 15, 20, 30, 40, 60, 100, float("inf"))


@dataclass(frozen=True)
class Bar:
    """label: the range, in milliseconds. height: 0 to 1, of the highest bar."""

    label: str
    count: int
    height: float


def histogram(milliseconds: Sequence[float]) -> list[Bar]:
    """How many took how long."""
    counts = [sum(low <= value < high for value in milliseconds) for low, high in pairwise(_EDGES)]
    highest = max(counts, default=0) or 1
    labels = [f"{low} to {high}" for low, high in pairwise(_EDGES[:-1])] + [f"{_EDGES[-2]} on"]
    return [Bar(label, count, count / highest) for label, count in zip(labels, counts, strict=True)]
