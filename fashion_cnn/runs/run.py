"""The run directory: the one place that knows its file names, and how a run stands."""

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
    """One run's directory. It is a run as soon as it holds `config.yaml`."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """The weights that were best on validation."""
        return self.checkpoints / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        """The state after the last finished epoch, to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def weights(self) -> Path:
        """The checkpoint that stands for the run: the best on validation, or the last where there is none."""
        return self.best_checkpoint if self.best_checkpoint.exists() else self.last_checkpoint

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def results_file(self) -> Path:
        return self.path / "results.json"

    @property
    def report_file(self) -> Path:
        return self.path / "report.md"

    @property
    def model_card_file(self) -> Path:
        """What the network is for, what it cannot do, and how it was made."""
        return self.path / "model_card.md"

    @property
    def export(self) -> Path:
        """The folder of what `python -m fashion_cnn.export` made."""
        return self.path / "export"

    @property
    def catalogue(self) -> Path:
        """The products that `python -m fashion_cnn.index` looked at with this network."""
        return self.path / "catalogue"

    @property
    def concepts(self) -> Path:
        """What `python -m fashion_cnn.teach` taught this network."""
        return self.path / "concepts"

    @property
    def plots(self) -> Path:
        """The folder of the report's plots."""
        return self.path / "figures"

    @property
    def predictions_file(self) -> Path:
        """What the network said of each image of train probe, validation and test."""
        return self.path / "predictions.npz"

    @property
    def examples_file(self) -> Path:
        """How each training image was learned."""
        return self.path / "examples.csv"

    @property
    def ambiguous_file(self) -> Path:
        """The validation and test images, the one that the network is least decided on first."""
        return self.path / "ambiguous.csv"

    @property
    def evaluation(self) -> Path:
        """The folder of what `python -m fashion_cnn.evaluate` found, a sub-folder a split."""
        return self.path / "evaluation"

    @property
    def search_evaluation(self) -> Path:
        """The folder of what `python -m fashion_cnn.evaluate_search` found, a sub-folder a split."""
        return self.path / "search_evaluation"

    @property
    def error_file(self) -> Path:
        """Why the run failed, or that a search pruned it; absent where neither is so."""
        return self.path / "error.txt"

    @property
    def state(self) -> State:
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
        """The state, with the reason where it failed or what of it is damaged."""
        state = self.state
        if damage := self.damage:
            return f"{state} ({display_path(damage.file)}: {damage.reason})"
        reason = self.error_file.read_text().strip().splitlines() if state in ("failed", "pruned") else []
        return f"{state} ({reason[0]})" if reason else state

    @property
    def started(self) -> float:
        """Seconds since 1970 when the run began, which no later command changes."""
        return self.config_file.stat().st_mtime

    def create(self) -> None:
        """Make the directory. Raises UserError where it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock_file.touch()
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): choose another directory with runs_dir=DIR."
            ) from error

    @property
    def damage(self) -> DamagedRunError | None:
        """What cannot be read of it."""
        try:
            check_config(self.config_file)
            read_results(self.results_file)
        except FileNotFoundError:
            return None
        except DamagedRunError as error:
            return error
        return None

    def config(self) -> DictConfig:
        """The settings. Raises UserError where they are damaged."""
        return read_config(self.config_file)

    def results(self) -> dict[str, Any]:
        """The figures of a finished run; an unfinished one has none, `{}`. Raises UserError where they are damaged."""
        return read_results(self.results_file)

    def write_config(self, config: DictConfig) -> None:
        write_atomically(self.config_file, OmegaConf.to_yaml(config))

    def write_results(self, results: dict[str, Any]) -> None:
        """Write last of all: its presence says that the run ended well."""
        self.error_file.unlink(missing_ok=True)
        write_atomically(self.results_file, json.dumps(results, indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process, so that it shows as running and nobody else resumes it.

        Raises UserError where another process holds it, and still does a second later.
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
        # filelock locks with flock too, but knows no shared lock, and needs the permission to write the file.
        try:
            with self._lock_file.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False
