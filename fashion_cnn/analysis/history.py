"""Metrics of a run by epoch, read from its metrics.csv."""

import csv
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fashion_cnn.runs import Run


@dataclass(frozen=True)
class History:
    """Metrics of a run by epoch.

    Attributes:
        epochs: `(E,)`, from 1.
        metrics: `(E,)` values by name, NaN for an epoch without a measurement.
    """

    epochs: NDArray[np.int64]
    metrics: dict[str, NDArray[np.float64]]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """The values of a metric; all NaN if the run did not measure it."""
        return self.metrics.get(name, np.full(len(self.epochs), np.nan))


def read_history(run: Run) -> History:
    """Read the metrics of all finished epochs.

    Raises:
        FileNotFoundError: if the first epoch has not finished.
    """
    with run.metrics_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name not in ("epoch", "step")]
    return History(
        epochs=np.array([int(row["epoch"]) + 1 for row in rows], dtype=np.int64),
        metrics={name: np.array([float(row[name] or "nan") for row in rows]) for name in names},
    )
