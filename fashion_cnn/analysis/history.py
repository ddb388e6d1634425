"""The curves of a run, read back from its metrics.csv."""

import csv
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fashion_cnn.runs import Run


@dataclass(frozen=True)
class History:
    """A run's figures epoch by epoch.

    epochs: `(E,)`, from 1. metrics: by name, `(E,)`, NaN where an epoch was not measured.
    """

    epochs: NDArray[np.int64]
    metrics: dict[str, NDArray[np.float64]]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """The curve `name`; all NaN where the run never measured it."""
        return self.metrics.get(name, np.full(len(self.epochs), np.nan))


def read_history(run: Run) -> History:
    """The figures of all finished epochs, one row each. Raises FileNotFoundError before the first has ended."""
    with run.metrics_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name not in ("epoch", "step")]
    return History(
        epochs=np.array([int(row["epoch"]) + 1 for row in rows], dtype=np.int64),
        metrics={name: np.array([float(row[name] or "nan") for row in rows]) for name in names},
    )
