"""Loggers that go on where a stopped run was."""

import csv
import io
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from fashion_cnn.runs import Run, write_atomically


@runtime_checkable
class ResumableLogger(Protocol):
    """A logger that can drop what a killed run wrote after its last checkpoint."""

    def resume_after(self, step: int) -> None: ...


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger, writing into the run directory itself."""

    def __init__(self, save_dir: str | Path, **settings: Any) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, **settings)

    def resume_after(self, step: int) -> None:
        """Have TensorBoard ignore what was written for later steps."""
        self._kwargs["purge_step"] = step + 1

    @rank_zero_only
    def save(self) -> None:
        """Put what was logged on disk. No hparams.yaml: the run has its config.yaml."""
        self.experiment.flush()


class MetricsCSV(Logger):
    """`metrics.csv`: a row an epoch, a column a figure, those that callbacks log too. Lightning's CSVLogger starts anew
    on resume.
    """

    # As `TensorBoard` names itself: checkpoints lie in the run directory whichever logger comes first.
    name = ""
    version = ""

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self._file = Run(Path(save_dir)).metrics_file
        self._rows: list[dict[str, Any]] = []

    @property
    def save_dir(self) -> str:
        return str(self._file.parent)

    def resume_after(self, step: int) -> None:
        """Keep the rows up to `step`."""
        if self._file.exists():
            with self._file.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run has its config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "epoch" not in metrics:
            return
        if not self._rows or int(self._rows[-1]["epoch"]) != metrics["epoch"]:
            self._rows.append({"epoch": metrics["epoch"], "step": 0})
        row = self._rows[-1]
        # Lightning tells a callback's figures under the number of the step, EpochLog under how many there were.
        row |= metrics | {"step": max(int(row["step"]), step or 0)}

    @rank_zero_only
    def save(self) -> None:
        text = io.StringIO()
        # In the order of appearance: a figure may come first in a later epoch.
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self._file, text.getvalue())
