"""The run directory: file names, state, lock, config and results."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from fashion_cnn.errors import UserError, printable
from fashion_cnn.runs.damage import MAX_CONFIG_BYTES, DamagedRunError, read_regular
from fashion_cnn.runs.files import (
    check_config,
    check_links,
    create_folder,
    display_path,
    is_locked,
    lock_file,
    read_config,
    read_results,
    remove_partial_files,
    write_atomically,
    write_json,
)

# Subdirectories with TensorBoard events: TensorBoard shows each as a run of its own, with a colour of its own.
SPLIT_EVENTS = ("train", "val")
BEST_EVENTS = "best"
OVERFITTING_EVENTS = "overfitting"
# Format of the time in the name of a run directory.
TIME_FORMAT = "%Y-%m-%d_%H-%M-%S"
_NAMED_TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
# The file that marks the directory of a hyperparameter search, and the folder below runs_dir with these directories.
STUDY_FILE = "study.db"
STUDIES_FOLDER = "tune"
_TRIAL = re.compile(r"trial-\d{4,}")
State = Literal["finished", "running", "failed", "pruned", "stopped", "damaged", "empty"]
_MAX_ERROR_BYTES = 1_000_000


class _PathInRun:
    """A path below a run directory, as an attribute of `Run`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: "Run", owner: type) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class Run:
    """A run directory. It counts as a run once it holds `config.yaml`.

    Attributes:
        path: the directory.
        config_file: the config of the training.
        checkpoints: the folder of the checkpoints.
        best_checkpoint: the weights that were best on validation.
        last_checkpoint: the state after the last completed epoch, to resume from.
        metrics_file: the metrics of each epoch.
        results_file: the final results, written last.
        trackers_file: the ids of the run at W&B, MLflow and Comet, and the number of epochs that they have.
        error_file: the reason why the run failed or was pruned, absent otherwise.
        report_file: the report on the training.
        plots: the folder of the report's plots.
        model_card_file: purpose, limits and training of the network.
        predictions_file: the predictions for each image of train probe, validation and test.
        logits_file: the logits of all training and test images, of a run that keeps no weights (`keep=logits`).
        training_images_file: hashes of the images that the weights were trained on, see `training/leakage.py`.
        examples_file: the training dynamics of each training image.
        ambiguous_file: the validation and test images, those with the least certain predictions first.
        training_embeddings: embeddings of training images, which `python -m fashion_cnn.explain` keeps.
        evaluation: the output folder of `python -m fashion_cnn.evaluate`, with a sub-folder per split.
        search_evaluation: the output folder of `python -m fashion_cnn.evaluate_search`, with a sub-folder per split.
        export: the output folder of `python -m fashion_cnn.export`.
        catalogue: the product catalogue that `python -m fashion_cnn.index` makes by default.
        concepts: the folder of the concepts from `python -m fashion_cnn.teach`.
    """

    path: Path

    config_file = _PathInRun("config.yaml")
    checkpoints = _PathInRun("checkpoints")
    best_checkpoint = _PathInRun("checkpoints/best.ckpt")
    last_checkpoint = _PathInRun("checkpoints/last.ckpt")
    metrics_file = _PathInRun("metrics.csv")
    results_file = _PathInRun("results.json")
    trackers_file = _PathInRun("trackers.json")
    error_file = _PathInRun("error.txt")
    report_file = _PathInRun("report.md")
    plots = _PathInRun("figures")
    model_card_file = _PathInRun("model_card.md")
    predictions_file = _PathInRun("predictions.npz")
    logits_file = _PathInRun("logits.npz")
    training_images_file = _PathInRun("training_images.npy")
    examples_file = _PathInRun("examples.csv")
    ambiguous_file = _PathInRun("ambiguous.csv")
    training_embeddings = _PathInRun("training_embeddings.npz")
    evaluation = _PathInRun("evaluation")
    search_evaluation = _PathInRun("search_evaluation")
    export = _PathInRun("export")
    catalogue = _PathInRun("catalogue")
    concepts = _PathInRun("concepts")
    _lock_file = _PathInRun(".lock")

    @property
    def weights(self) -> Path:
        """The checkpoint that every command loads: the best on validation, or the last if there is no best."""
        return self.best_checkpoint if self.best_checkpoint.exists() else self.last_checkpoint

    @property
    def state(self) -> State:
        """The state, read from the files and the lock."""
        if self.damage is not None:
            return "damaged"
        if self.results_file.exists():
            return "finished"
        if is_locked(self._lock_file):
            return "running"
        if not self.config_file.exists():
            return "empty"
        if (error := self._error()) is None:
            return "stopped"
        return "pruned" if error.startswith("pruned") else "failed"

    def describe_state(self) -> str:
        """Return the state, with the reason of a failure, or with the damaged file."""
        state = self.state
        if damage := self.damage:
            return printable(f"{state} ({display_path(damage.file)}: {damage.reason})")
        reason = (self._error() or "").strip().splitlines() if state in ("failed", "pruned") else []
        return printable(f"{state} ({reason[0]})") if reason else state

    def _error(self) -> str | None:
        """The reason of a failure, if there is one."""
        try:
            return read_regular(self.error_file, _MAX_ERROR_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return None
        except ValueError as error:
            return f"{self.error_file.name}: {error}"

    @property
    def started(self) -> float:
        """The time when the run started, in seconds since 1970.

        It is read from the name of the directory, otherwise from the results, which keep it in a copy; otherwise it is
        the modification time of the config.
        """
        try:
            if match := _NAMED_TIME.match(self.path.absolute().name):
                return time.mktime(time.strptime(match[0], TIME_FORMAT))
            results = self.results()
            return datetime.fromisoformat(results["finished"]).timestamp() - results["seconds"]
        except (KeyError, TypeError, ValueError, OverflowError):
            return self.modified

    @property
    def modified(self) -> float:
        """The time of the config's last change, in seconds since 1970."""
        return (self.config_file if self.config_file.exists() else self.path).stat().st_mtime

    @property
    def keeps_only_logits(self) -> bool:
        """True if it is finished and holds no weights, see `logits_file`."""
        return self.logits_file.exists() and self.results_file.exists()

    @property
    def is_trial(self) -> bool:
        """True if a hyperparameter search trained it."""
        folder = self.path.absolute().parent
        # Without the file where the option tune.storage names another place.
        is_named = folder.parent.name == STUDIES_FOLDER and _TRIAL.fullmatch(self.path.name) is not None
        return is_named or (folder / STUDY_FILE).is_file()

    def create(self) -> None:
        """Create the directory, and remove what a killed process left in it.

        Raises:
            UserError: if it is not writable, or a link in it leads elsewhere.
        """
        check_links(self.path)
        create_folder(self.path, None if self.config_file.exists() else "runs_dir")
        # A link is not followed; `locked` refuses it.
        if not os.path.lexists(self._lock_file):
            self._lock_file.touch()
        for folder in (self.path, self.checkpoints):
            remove_partial_files(folder)

    @property
    def damage(self) -> DamagedRunError | None:
        """The error of a file that cannot be read."""
        try:
            check_config(self.config_file)
            read_results(self.results_file)
        except FileNotFoundError:
            # Otherwise the directory is not a run yet.
            if not (self.checkpoints.is_dir() or self.results_file.exists()):
                return None
            return DamagedRunError(self.config_file, "it is missing", "restore it from a copy of the run")
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
        """Write the config, which makes the directory a run. Raises UserError if no command could read it."""
        text = OmegaConf.to_yaml(config)
        if len(text.encode()) > MAX_CONFIG_BYTES:
            raise UserError(f"The settings are larger than {MAX_CONFIG_BYTES / 1e6:g} MB: shorten their lists.")
        write_atomically(self.config_file, text)

    def replace_config(self, config: DictConfig) -> None:
        """Write another config of a run that has one; the time when it started stays."""
        started = self.config_file.stat().st_mtime_ns
        self.write_config(config)
        os.utime(self.config_file, ns=(started, started))

    def write_results(self, results: dict[str, Any]) -> None:
        """Write the results, which marks the run as finished: call it last."""
        self.error_file.unlink(missing_ok=True)
        write_json(self.results_file, results)

    def remove_all_but_logits(self) -> None:
        """Remove what a training leaves besides config, results and logits."""
        for folder in (self.checkpoints, *(self.path / split for split in SPLIT_EVENTS)):
            if not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
        files = (self.metrics_file, self.training_images_file, *self.path.glob("events.out.tfevents.*"))
        for file in files:
            file.unlink(missing_ok=True)

    def write_error(self, reason: str) -> None:
        """Write why the run failed, unless the disk is full: the state is then `stopped`."""
        with suppress(OSError):
            write_atomically(self.error_file, f"{reason}\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for this process, so that its state is `running` and no other process trains it.

        Raises:
            UserError: if another process holds the lock for longer than a second.
        """
        # A process that reads the state holds the lock for a moment, too.
        with lock_file(self._lock_file, f"{self.path} is being trained by another process.", timeout=1):
            yield
