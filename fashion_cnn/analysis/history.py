"""Metrics of a run by epoch, read from its metrics.csv."""

import csv
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fashion_cnn.metrics.intervals import Interval, newcombe_interval, wilson_interval
from fashion_cnn.runs import Run
from fashion_cnn.runs.damage import DamagedRunError, read_text

_MAX_BYTES = 100_000_000
_MAX_STEPS = 2**60


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
        UserError: if the file is missing or damaged.
    """
    rows = read_epochs(run)
    if not rows:
        raise _damaged(run, "it holds no epoch")
    names = [name for name in rows[0] if name not in ("epoch", "step")]
    return History(
        epochs=np.array([int(row["epoch"]) + 1 for row in rows], dtype=np.int64),
        metrics={name: np.array([float(row[name] or "nan") for row in rows]) for name in names},
    )


def read_epochs(run: Run) -> list[dict[str, str]]:
    """Read the rows of `metrics.csv`, one for each finished epoch; none if the file is missing.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(run.metrics_file, _MAX_BYTES))))
        for row in rows:
            if None in row or None in row.values():
                raise ValueError("its rows differ in length")
            if not (0 <= int(row["epoch"]) < _MAX_STEPS and 0 <= int(row["step"]) < _MAX_STEPS):
                raise ValueError(f"its epoch {row['epoch']} or step {row['step']} is impossible")
            for value in row.values():
                float(value or "nan")
    except FileNotFoundError:
        return []
    except KeyError as error:
        raise _damaged(run, f"it has no column {error.args[0]}") from error
    except (ValueError, csv.Error) as error:
        raise _damaged(run, str(error)) from error
    return rows


def evaluation_lag(history: History, probe_images: int, running_images: float) -> Interval:
    """Return the accuracy on the training batches of the last epoch minus the accuracy on the train probe.

    Augmentation, dropout and the older weights of the epoch lower the accuracy on the batches. An interval above zero
    therefore shows that the averages used in evaluation, of the weights and in batch normalisation, lag behind.

    Args:
        history: metrics by epoch.
        probe_images: number of images of the train probe.
        running_images: number of images that an epoch trains on.

    Returns:
        The difference in accuracy with Newcombe's interval; NaN if the last epoch was not evaluated.
    """
    accuracies = (float(history[f"{name}/accuracy"][-1]) for name in ("running", "train"))
    counts = (running_images, probe_images)
    return newcombe_interval(*map(wilson_interval, accuracies, counts))


def _damaged(run: Run, reason: str) -> DamagedRunError:
    remedy = f"restore it from a copy, or delete it and {run.last_checkpoint} to restart the run from its first epoch"
    return DamagedRunError(run.metrics_file, reason, remedy)
