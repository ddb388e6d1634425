"""Products whose pictures are all but the same: what a shop's owner wants to know of a catalogue."""

from collections.abc import Callable

from torch import Tensor

# So many rows of the matrix of all similarities at once.
_ROWS = 2048


def near_duplicates(
    vectors: Tensor, at_least: float, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[list[int]]:
    """Groups of rows of unit vectors `(N, D)` that are linked by cosines of `at_least`, the largest group first.

    Rows that a chain of such links joins are one group, however far apart its ends are.
    """
    leader = list(range(len(vectors)))

    def leader_of(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS]
        # Each pair is seen once, from its first row.
        alike = (block @ vectors[start:].T >= at_least).triu(diagonal=1)
        for first, second in alike.nonzero().tolist():
            one, other = leader_of(start + first), leader_of(start + second)
            leader[max(one, other)] = min(one, other)
        progress(min(start + _ROWS, len(vectors)), len(vectors))
    groups: dict[int, list[int]] = {}
    for row in range(len(vectors)):
        groups.setdefault(leader_of(row), []).append(row)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))
