"""The developer's charts, as numbers that a template draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_EDGES = (0, 2, 4, 6, 8, 10, 15, 20, 30, 40, 60, 100, float("inf"))


@dataclass(frozen=True)
class Bar:
    """low: where its range begins, in milliseconds; high: where it ends, None where it does not. height: 0 to 1, of the
    highest bar.
    """

    low: float
    high: float | None
    count: int
    height: float


def histogram(milliseconds: Sequence[float]) -> list[Bar]:
    """How many took how long."""
    counts = [sum(low <= value < high for value in milliseconds) for low, high in pairwise(_EDGES)]
    highest = max(counts, default=0) or 1
    ends = (*_EDGES[1:-1], None)
    return [Bar(low, high, count, count / highest) for low, high, count in zip(_EDGES[:-1], ends, counts, strict=True)]
