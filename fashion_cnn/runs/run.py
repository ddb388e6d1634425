"""The run directory: file names, state, lock, config and results."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from fashion_cnn.errors import UserError
from fashion_cnn.runs.files import (
    DamagedRunError,
    check_config,
    display_path,
    read_config,
    read_results,
    write_atomically,
)

State = Literal["finished", "running", "failed", "pruned", "stopped", "damaged"]


@dataclass(frozen=True)
class Run:
    """A run directory. It counts as a run once it holds `config.yaml`."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The config of the training."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """The weights that were best on validation."""
        return self.checkpoints / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        """The state after the last completed epoch, to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def weights(self) -> Path:
        """The checkpoint that every command loads: the best on validation, or the last if there is no best."""
        return self.best_checkpoint if self.best_checkpoint.exists() else self.last_checkpoint

    @property
    def metrics_file(self) -> Path:
        """The metrics of each epoch."""
        return self.path / "metrics.csv"

    @property
    def results_file(self) -> Path:
        """The final results, written last."""
        return self.path / "results.json"

    @property
    def report_file(self) -> Path:
        """The report on the training."""
        return self.path / "report.md"

    @property
    def model_card_file(self) -> Path:
        """The model card: purpose, limits and training of the network."""
        return self.path / "model_card.md"

    @property
    def export(self) -> Path:
        """The output folder of `python -m fashion_cnn.export`."""
        return self.path / "export"

    @property
    def catalogue(self) -> Path:
        """The product catalogue that `python -m fashion_cnn.index` makes by default."""
        return self.path / "catalogue"

    @property
    def concepts(self) -> Path:
        """The folder of the concepts from `python -m fashion_cnn.teach`."""
        return self.path / "concepts"

    @property
    def plots(self) -> Path:
        """The folder of the report's plots."""
        return self.path / "figures"

    @property
    def predictions_file(self) -> Path:
        """The predictions for each image of train probe, validation and test."""
        return self.path / "predictions.npz"

    @property
    def examples_file(self) -> Path:
        """The training dynamics of each training image."""
        return self.path / "examples.csv"

    @property
    def ambiguous_file(self) -> Path:
        """The validation and test images, those with the least certain predictions first."""
        return self.path / "ambiguous.csv"

    @property
    def evaluation(self) -> Path:
        """The output folder of `python -m fashion_cnn.evaluate`, with a sub-folder per split."""
        return self.path / "evaluation"

    @property
    def search_evaluation(self) -> Path:
        """The output folder of `python -m fashion_cnn.evaluate_search`, with a sub-folder per split."""
        return self.path / "search_evaluation"

    @property
    def error_file(self) -> Path:
        """The reason why the run failed or was pruned, absent otherwise."""
        return self.path / "error.txt"

    @property
    def state(self) -> State:
        """The state, read from the files and the lock."""
        if self.damage is not None:
            return "damaged"
        if self.results_file.exists():
            return "finished"
        if self._is_locked():
            return "running"
        if not self.error_file.exists():
            return "stopped"
        return "pruned" if self.error_file.read_text().startswith("pruned") else "failed"

    def describe_state(self) -> str:
        """Return the state, with the reason of a failure, or with the damaged file."""
        state = self.state
        if damage := self.damage:
            return f"{state} ({display_path(damage.file)}: {damage.reason})"
        reason = self.error_file.read_text().strip().splitlines() if state in ("failed", "pruned") else []
        return f"{state} ({reason[0]})" if reason else state

    @property
    def started(self) -> float:
        """The time when the run started, in seconds since 1970."""
        return self.config_file.stat().st_mtime

    def create(self) -> None:
        """Create the directory. Raises UserError if it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock_file.touch()
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): choose another directory with runs_dir=DIR."
            ) from error

    @property
    def damage(self) -> DamagedRunError | None:
        """The error of a file that cannot be read."""
        try:
            check_config(self.config_file)
            read_results(self.results_file)
        except FileNotFoundError:
            return None
        except DamagedRunError as error:
            return error
        return None

    def config(self) -> DictConfig:
        """Read the config. Raises UserError if it is damaged."""
        return read_config(self.config_file)

    def results(self) -> dict[str, Any]:
        """Read the results, `{}` of an unfinished run. Raises UserError if they are damaged."""
        return read_results(self.results_file)

    def write_config(self, config: DictConfig) -> None:
        """Write the config, which makes the directory a run."""
        write_atomically(self.config_file, OmegaConf.to_yaml(config))

    def write_results(self, results: dict[str, Any]) -> None:
        """Write the results, which marks the run as finished: call it last."""
        self.error_file.unlink(missing_ok=True)
        write_atomically(self.results_file, json.dumps(results, indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for this process, so that its state is `running` and no other process trains it.

        Raises:
            UserError: if another process holds the lock for longer than a second.
        """
        from filelock import FileLock, Timeout

        # A process that reads the state holds the lock for a moment, too.
        try:
            lock = FileLock(self._lock_file, timeout=1).acquire()
        except Timeout:
            raise UserError(f"{self.path} is being trained by another process.") from None
        with lock:
            yield

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"

    def _is_locked(self) -> bool:
        # filelock uses flock, too, but only exclusively and on files that the process may write: here readers share the
        # lock, so that none takes another for a training, and need no write permission.
        try:
            with self._lock_file.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        return False
