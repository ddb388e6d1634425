"""Loggers that a resumed run continues."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from fashion_cnn.analysis.history import read_epochs
from fashion_cnn.analysis.tensorboard import tags_with_intervals
from fashion_cnn.runs import Run, write_atomically
from fashion_cnn.runs.run import SPLIT_EVENTS


@runtime_checkable
class ResumableLogger(Protocol):
    """A logger that can discard what a killed run wrote after its last checkpoint."""

    def resume_after(self, step: int, epochs: int) -> None:
        """Discard the records after training step `step`, the last one of the first `epochs` epochs."""


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger, writing directly into the run directory, over the epochs.

    Metrics of an epoch have its number, from 1, as their step, so that trainings on different numbers of images can be
    compared. Other metrics keep their step. `train/...` and `val/...` are written to the subdirectories `train` and
    `val`, without the prefix: TensorBoard draws both in one chart, in two colors.

    Args:
        save_dir: the run directory.
        **settings: arguments of Lightning's TensorBoardLogger.
    """

    def __init__(self, save_dir: str | Path, **settings: Any) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, **settings)
        self._split_writers: dict[str, Any] = {}

    def resume_after(self, step: int, epochs: int) -> None:
        """Make TensorBoard ignore the events of all epochs after the first `epochs`.

        Older versions counted training steps and had no subdirectories: their curves are written anew.
        """
        is_old = not any((Path(self.log_dir) / split).is_dir() for split in SPLIT_EVENTS)
        self._kwargs["purge_step"] = 0 if is_old else epochs + 1
        if is_old:
            for row in _read_rows(Run(Path(self.save_dir)), step):
                self.log_metrics({name: float(value) for name, value in row.items() if value and name != "step"})

    @rank_zero_only
    def open_splits(self, splits: Iterable[str]) -> None:
        """Create the event files of some splits, after that of the run.

        TensorBoard colors runs in the order of their first event: files of one moment give each run's splits the same
        neighbours, also if several runs train at the same time.
        """
        # Also creates the file of the run.
        writer_class = type(self.experiment)
        for split in splits:
            if split not in self._split_writers:
                self._split_writers[split] = writer_class(str(Path(self.log_dir) / split), **self._kwargs)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write the metrics of a split to its subdirectory, all others to the run directory."""
        others = dict(metrics)
        epoch = others.pop("epoch", None)
        if epoch is not None:
            step = int(epoch) + 1
        for name in metrics:
            split, _, metric = name.partition("/")
            if split in SPLIT_EVENTS and metric:
                self.open_splits([split])
                self._split_writers[split].add_scalar(metric, others.pop(name), step)
        super().log_metrics(tags_with_intervals(others), step)

    @rank_zero_only
    def save(self) -> None:
        """Flush the events to disk, without Lightning's hparams.yaml: the run has a config.yaml."""
        for writer in [self.experiment, *self._split_writers.values()]:
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close all files."""
        super().finalize(status)
        for writer in self._split_writers.values():
            writer.close()


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

    def resume_after(self, step: int, epochs: int) -> None:
        """Discard the rows of all steps after `step`. Raises UserError if the file is damaged."""
        self._rows = _read_rows(Run(self._file.parent), step)

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


def _read_rows(run: Run, last_step: int) -> list[dict[str, Any]]:
    """Read the rows of `metrics.csv` up to a training step; none if there is no file. Raises UserError if damaged."""
    return [row for row in read_epochs(run) if int(row["step"]) <= last_step]
