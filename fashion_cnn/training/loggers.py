"""Loggers that a resumed run continues."""

import csv
import io
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from fashion_cnn.analysis.history import read_epochs
from fashion_cnn.runs import Run, write_atomically


@runtime_checkable
class ResumableLogger(Protocol):
    """A logger that can discard what a killed run wrote after its last checkpoint."""

    def resume_after(self, step: int) -> None:
        """Discard the records of all steps after `step`."""


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger, writing directly into the run directory.

    Args:
        save_dir: the run directory.
        **settings: arguments of Lightning's TensorBoardLogger.
    """

    def __init__(self, save_dir: str | Path, **settings: Any) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, **settings)

    def resume_after(self, step: int) -> None:
        """Make TensorBoard ignore the events of all steps after `step`."""
        self._kwargs["purge_step"] = step + 1

    @rank_zero_only
    def save(self) -> None:
        """Flush the events to disk, without Lightning's hparams.yaml: the run has a config.yaml."""
        self.experiment.flush()


class MetricsCSV(Logger):
    """Writes `metrics.csv`: one row an epoch, one column a metric, including metrics that callbacks log.

    Lightning's CSVLogger deletes the file when a run is resumed.

    Args:
        save_dir: the run directory.
    """

    # Empty as in `TensorBoard`: checkpoints are in the run directory whichever logger is first.
    name = ""
    version = ""

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self._file = Run(Path(save_dir)).metrics_file
        self._rows: list[dict[str, Any]] = []

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self._file.parent)

    def resume_after(self, step: int) -> None:
        """Discard the rows of all steps after `step`. Raises UserError if the file is damaged."""
        self._rows = [row for row in read_epochs(Run(self._file.parent)) if int(row["step"]) <= step]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run has a config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Merge the metrics into the row of their epoch; metrics without an epoch are ignored."""
        if "epoch" not in metrics:
            return
        if not self._rows or int(self._rows[-1]["epoch"]) != metrics["epoch"]:
            self._rows.append({"epoch": metrics["epoch"], "step": 0})
        row = self._rows[-1]
        # Lightning logs callbacks' metrics at the index of the last step, EpochLog at the number of steps.
        row |= metrics | {"step": max(int(row["step"]), step or 0)}

    @rank_zero_only
    def save(self) -> None:
        """Write the file atomically; columns are in the order of their first appearance."""
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self._file, text.getvalue())
