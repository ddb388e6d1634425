"""Products whose pictures are all but the same: what a shop's owner wants to know of a catalogue."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

# So many rows of the matrix of all similarities at once.
_ROWS = 2048


def near_duplicates(
    vectors: Tensor, at_least: float, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[list[int]]:
    """Groups of rows of unit vectors `(N, D)` that are linked by cosines of `at_least`, the largest group first.

    Rows that a chain of such links joins are one group, however far apart its ends are.
    """
    # Of each row the first of its group.
    leader = np.arange(len(vectors))
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS]
        # Each pair is seen once, from its first row.
        alike = (block @ vectors[start:].T >= at_least).triu(diagonal=1)
        for row in alike.any(dim=1).nonzero()[:, 0].tolist():
            group = int(leader[start + row])
            for other in np.unique(leader[start:][alike[row].numpy()]).tolist():
                if other != group:
                    group, joined = min(group, other), max(group, other)
                    leader[leader == joined] = group
        progress(min(start + _ROWS, len(vectors)), len(vectors))
    groups: dict[int, list[int]] = {}
    for row, first in enumerate(leader.tolist()):
        groups.setdefault(first, []).append(row)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))
