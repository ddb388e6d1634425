"""Loggers that a resumed run continues: TensorBoard, metrics.csv, Weights & Biases, MLflow and Comet."""

import csv
import io
import json
import logging
import os
import posixpath
import re
import secrets
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from fashion_cnn.analysis.history import read_epochs
from fashion_cnn.analysis.tensorboard import tags_with_intervals
from fashion_cnn.errors import UserError, require
from fashion_cnn.runs import Run, write_atomically
from fashion_cnn.runs.damage import read_regular
from fashion_cnn.runs.run import SPLIT_EVENTS

# Largest `trackers.json`.
_MAX_TRACKERS_BYTES = 100_000


@runtime_checkable
class ResumableLogger(Protocol):
    """A logger that can discard what a killed run wrote after its last checkpoint."""

    def resume_after(self, step: int, epochs: int) -> None:
        """Discard the records after training step `step`, the last one of the first `epochs` epochs."""


@runtime_checkable
class ResultsLogger(Protocol):
    """A logger that keeps the results of a finished run: metrics, verdict, plots and report."""

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Store the contents of `results.json` and the files of the run."""

    def close(self) -> None:
        """End the connection, also after a failure."""


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger, writing directly into the run directory, over the epochs.

    Metrics of an epoch have its number, from 1, as their step, so that trainings on different numbers of images can be
    compared. Other metrics keep their step. `train/...` and `val/...` are written to the subdirectories `train` and
    `val`, without the prefix: TensorBoard draws both in one chart, in two colours.

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

        TensorBoard assigns colours to runs in the order of their first event: files of one moment give each run's
        splits the same neighbours, also if several runs train at the same time.
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


class _EpochTracker(Logger):
    """Sends the metrics of `metrics.csv` to a tracker, those of each epoch once, at its number, from 1, as the step.

    `trackers.json` in the run directory holds the id of the run at the tracker, and the number of epochs that it has: a
    resumed run continues there. Metrics without an epoch are left out, as in `metrics.csv`.
    """

    # Name of the tracker in `trackers.json`.
    _tracker: str
    _run: Run
    # Number of epochs that the tracker had before this process, and that it has now.
    _sent = 0
    _epochs = 0

    @property
    def run_id(self) -> str | None:
        """The id of the run at the tracker; None if it was not started."""
        raise NotImplementedError

    def _send(self, metrics: Mapping[str, Any], step: int) -> None:
        raise NotImplementedError

    def _restore(self, save_dir: str | Path) -> str | None:
        """Read the state of a resumed run, and return its id at the tracker."""
        self._run = Run(Path(save_dir))
        state = _read_trackers(self._run).get(self._tracker, {})
        self._sent = self._epochs = state.get("epochs", 0)
        return state.get("id")

    def resume_after(self, step: int, epochs: int) -> None:
        """Send the finished epochs that the tracker lacks; the others are not sent again."""
        for row in _read_rows(self._run, step):
            self.log_metrics({name: float(value) for name, value in row.items() if value and name != "step"})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send the metrics of an epoch, unless the tracker has this epoch already."""
        epoch = metrics.get("epoch")
        if epoch is None or epoch < self._sent:
            return
        self._epochs = int(epoch) + 1
        self._send(metrics, self._epochs)

    @rank_zero_only
    def save(self) -> None:
        """Write the id and the number of epochs into the run directory."""
        if self.run_id is not None:
            state = _read_trackers(self._run) | {self._tracker: {"id": self.run_id, "epochs": self._epochs}}
            write_atomically(self._run.trackers_file, json.dumps(state, indent=1))

    def _report_files(self) -> list[Path]:
        """The plots and the texts that go to the tracker."""
        texts = (self._run.report_file, self._run.model_card_file, self._run.results_file)
        return [*sorted(self._run.plots.glob("*.png")), *(file for file in texts if file.exists())]


class WeightsAndBiases(_EpochTracker, WandbLogger):
    """Lightning's WandbLogger, continued by a resumed run, with the plots and the verdict at the end.

    Args:
        save_dir: the run directory. W&B writes its own files into `wandb/` in the working directory or in WANDB_DIR.
        project: name of the project.
        entity: user or team; None for that of the login.
        offline: keep the run on this machine, for `wandb sync`; None as the variable WANDB_MODE says.
        name: name of the run; None for the last two folders of the run directory.
        group: name of a group of runs.
        tags: tags of the run.
        notes: a description of the run.
        log_model: upload checkpoints, see Lightning's WandbLogger.
    """

    _tracker = "wandb"

    def __init__(
        self,
        save_dir: str | Path,
        *,
        project: str = "fashion_cnn",
        entity: str | None = None,
        offline: bool | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        log_model: bool = False,
    ) -> None:
        require("wandb", "wandb")
        identity = self._restore(save_dir) or secrets.token_hex(4)
        WandbLogger.__init__(
            self,
            name=name or "/".join(Path(save_dir).absolute().parts[-2:]),
            # The run directory would get links to W&B's logs, which lead out of it.
            save_dir=str(Path(os.environ.get("WANDB_DIR") or ".").absolute()),
            id=identity,
            project=project,
            log_model=log_model,
            entity=entity,
            group=group,
            tags=tags,
            notes=notes,
            mode=None if offline is None else "offline" if offline else "online",
        )

    @property
    def run_id(self) -> str | None:
        """The id of the W&B run."""
        return str(self._id) if self._experiment is not None else None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which is started at the first use. Raises UserError if W&B refuses it."""
        if self._experiment is None:
            import wandb

            # W&B would write its progress and copies of the terminal output between the lines of a training.
            quiet = wandb.Settings(console="off", silent=True)
            # Lightning passes an option that W&B ignores, with a warning.
            self._wandb_init.pop("anonymous", None)
            try:
                self._experiment = wandb.init(**self._wandb_init, settings=quiet)
            except wandb.errors.Error as error:
                raise UserError(
                    f"logger.wandb cannot start: {' '.join(str(error).split())} Log in with wandb login, or keep the "
                    "run on this machine with logger.wandb.offline=true."
                ) from error
            self._experiment.define_metric("epoch")
            self._experiment.define_metric("*", step_metric="epoch")
        return self._experiment

    def _send(self, metrics: Mapping[str, Any], step: int) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_results(self, results: Mapping[str, Any]) -> None:
        """Store final metrics and verdict in the summary, the plots as images, and all files as an artifact."""
        import wandb

        run = self.experiment
        run.summary.update(_final_values(results))
        files = self._report_files()
        plots = {f"figures/{file.stem}": wandb.Image(str(file)) for file in files if file.suffix == ".png"}
        run.log(plots, step=self._epochs)
        artifact = wandb.Artifact(f"run-{run.id}", type="report")
        for file in files:
            artifact.add_file(str(file), str(file.relative_to(self._run.path)))
        run.log_artifact(artifact)
        upload = f"on this machine; wandb sync {run.settings.sync_dir} uploads it"
        place = upload if run.settings._offline else run.url
        print(f"W&B run {run.id}: {place}", file=sys.stderr)

    @rank_zero_only
    def close(self) -> None:
        """End the W&B run: the next training in this process has its own."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if self._run.results_file.exists() else 1)
            self._experiment = None


class MLflow(_EpochTracker, MLFlowLogger):
    """Lightning's MLFlowLogger, continued by a resumed run, with the plots and the verdict at the end.

    Args:
        save_dir: the run directory.
        experiment_name: name of the experiment.
        tracking_uri: address of the server, or a database such as `sqlite:///mlflow.db`; None for the default of
            MLflow, which is the variable MLFLOW_TRACKING_URI or a database in the working directory.
        artifact_location: where the files of a new experiment are stored; None for the default of the server.
        run_name: name of the run; None for the last two folders of the run directory.
        tags: tags of the run.
        log_model: upload checkpoints, see Lightning's MLFlowLogger.
    """

    _tracker = "mlflow"

    def __init__(
        self,
        save_dir: str | Path,
        *,
        experiment_name: str = "fashion_cnn",
        tracking_uri: str | None = None,
        artifact_location: str | None = None,
        run_name: str | None = None,
        tags: dict[str, str] | None = None,
        log_model: bool = False,
    ) -> None:
        require("mlflow", "mlflow", "sqlalchemy", "alembic")
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        MLFlowLogger.__init__(
            self,
            experiment_name=experiment_name,
            run_name=run_name or "/".join(Path(save_dir).absolute().parts[-2:]),
            tracking_uri=tracking_uri or mlflow.get_tracking_uri(),
            tags=tags,
            log_model=log_model,
            artifact_location=artifact_location,
            run_id=self._restore(save_dir),
        )

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run."""
        return self._run_id if self._initialized else None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The client of MLflow, which starts or continues the run at the first use.

        Raises:
            UserError: if MLflow refuses it.
        """
        if self._initialized:
            return self._mlflow_client
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.context.registry import resolve_tags

        client = self._mlflow_client
        try:
            if self._run_id is not None:
                client.update_run(self._run_id, status="RUNNING")
                self._experiment_id = client.get_run(self._run_id).info.experiment_id
            else:
                experiment = client.get_experiment_by_name(self._experiment_name)
                self._experiment_id = (
                    experiment.experiment_id
                    if experiment is not None and experiment.lifecycle_stage == "active"
                    else client.create_experiment(self._experiment_name, artifact_location=self._artifact_location)
                )
                # Lightning's class would also make this server the default of the process and its children.
                run = client.create_run(self._experiment_id, tags=resolve_tags(self.tags), run_name=self._run_name)
                self._run_id = run.info.run_id
        except MlflowException as error:
            raise UserError(
                f"logger.mlflow cannot start at {self._tracking_uri}: {' '.join(str(error).split())} Give the address "
                "that the run was started with: ++logger.mlflow.tracking_uri=ADDRESS."
            ) from error
        self._initialized = True
        return client

    def _send(self, metrics: Mapping[str, Any], step: int) -> None:
        MLFlowLogger.log_metrics(self, {_mlflow_name(name): value for name, value in metrics.items()}, step)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Leave the run open: the results follow after the training."""

    @rank_zero_only
    def log_results(self, results: Mapping[str, Any]) -> None:
        """Store final metrics and the verdict, and the plots and texts as artifacts."""
        client = self.experiment
        for name, value in _final_values(results).items():
            if isinstance(value, str):
                client.set_tag(self.run_id, name, value)
            else:
                client.log_metric(self.run_id, _mlflow_name(name), value)
        for file in self._report_files():
            folder = str(file.parent.relative_to(self._run.path))
            client.log_artifact(self.run_id, str(file), None if folder == "." else folder)
        print(f"MLflow run {self.run_id} at {self._tracking_uri}", file=sys.stderr)

    @rank_zero_only
    def close(self) -> None:
        """Mark the run as finished or failed."""
        if self.run_id is not None:
            status = "FINISHED" if self._run.results_file.exists() else "FAILED"
            self._mlflow_client.set_terminated(self.run_id, status)


class Comet(_EpochTracker):
    """Sends a run to Comet, continued by a resumed run, with the plots and the verdict at the end.

    Lightning's CometLogger records nothing without a connection. Offline, Comet writes its file when the training ends:
    a killed training is sent whole by the resumed one.

    Args:
        save_dir: the run directory.
        project: name of the project.
        workspace: user or team; None for that of the account.
        offline: keep the run on this machine, for `comet upload`; None as the variable COMET_START_ONLINE says.
        offline_directory: folder of the files that are kept; None for `.cometml-runs` in the working directory.
        name: name of the run; None for the last two folders of the run directory.
        tags: tags of the run.
    """

    _tracker = "comet"
    # Empty as in `TensorBoard`: checkpoints are in the run directory whichever logger is first.
    name = ""
    version = ""

    def __init__(
        self,
        save_dir: str | Path,
        *,
        project: str = "fashion_cnn",
        workspace: str | None = None,
        offline: bool | None = None,
        offline_directory: str | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        super().__init__()
        require("comet", "comet_ml")
        # Comet would patch torch and other packages when it is imported, and report its own errors.
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")
        os.environ.setdefault("COMET_ERROR_TRACKING_ENABLE", "0")
        restored = self._restore(save_dir)
        self._key = restored or secrets.token_hex(16)
        self._project, self._workspace = project, workspace
        self._mode = "get" if restored else "create"
        # Number of epochs that were sent; `_epochs` also counts one whose sending failed.
        self._received = self._epochs
        self._offline = offline
        self._offline_directory = offline_directory
        self._title = name or "/".join(Path(save_dir).absolute().parts[-2:])
        self._tags = tags
        self._experiment: Any = None

    @property
    def run_id(self) -> str | None:
        """The key of the Comet experiment."""
        return self._key if self._experiment is not None else None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The Comet experiment, which is started at the first use. Raises UserError if Comet refuses it."""
        if self._experiment is not None:
            return self._experiment
        import comet_ml

        logging.getLogger("comet_ml").setLevel(logging.ERROR)
        is_offline = self._is_offline()
        # Its own stub does not list the public function.
        has_key = bool(comet_ml.get_config("comet.api_key"))  # type: ignore[attr-defined]
        if not (is_offline or has_key):
            raise UserError(
                "logger.comet cannot start: there is no API key. Log in with comet login, set COMET_API_KEY, or keep "
                "the run on this machine with logger.comet.offline=true."
            )
        # Neither sources nor the terminal's output nor the command line are sent.
        unwanted = ("log_code", "log_graph", "log_git_metadata", "log_git_patch", "log_env_details", "parse_args")
        switches = (*unwanted, "auto_param_logging", "auto_metric_logging", "auto_output_logging")
        switched_off: dict[str, Any] = dict.fromkeys(switches, False)
        settings = comet_ml.ExperimentConfig(
            **switched_off,
            offline_directory=self._offline_directory,
            display_summary_level=0,
            name=self._title,
            tags=self._tags,
        )
        try:
            self._experiment = comet_ml.start(
                project=self._project,
                workspace=self._workspace,
                experiment_key=self._key,
                mode=self._mode,
                online=not is_offline,
                experiment_config=settings,
            )
        except (comet_ml.exceptions.CometException, ValueError) as error:
            raise UserError(f"logger.comet cannot start: {' '.join(str(error).split())}") from error
        return self._experiment

    def _is_offline(self) -> bool:
        if self._offline is not None:
            return self._offline
        return os.environ.get("COMET_START_ONLINE", "").strip().lower() in ("0", "false", "no")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Send the settings."""
        self.experiment.log_parameters(dict(params))

    def _send(self, metrics: Mapping[str, Any], step: int) -> None:
        self.experiment.log_metrics(dict(metrics), step=step, epoch=step)
        self._received = step

    @rank_zero_only
    def save(self) -> None:
        """Write key and number of epochs into the run directory; offline, `close` does so."""
        if not self._is_offline():
            super().save()

    @rank_zero_only
    def log_results(self, results: Mapping[str, Any]) -> None:
        """Store final metrics and the verdict, and the plots and texts as assets."""
        experiment = self.experiment
        values = _final_values(results)
        experiment.log_others({name: value for name, value in values.items() if isinstance(value, str)})
        experiment.log_metrics({name: value for name, value in values.items() if not isinstance(value, str)})
        for file in self._report_files():
            experiment.log_asset(str(file), file_name=str(file.relative_to(self._run.path)))
        place = "on this machine; comet upload sends it" if self._is_offline() else experiment.url
        print(f"Comet experiment {self._key}: {place}", file=sys.stderr)

    @rank_zero_only
    def close(self) -> None:
        """End the experiment: the next training in this process has its own."""
        if self._experiment is not None:
            self._experiment.end()
            # A failure may have come before the last epoch was sent.
            self._epochs = self._received
            super().save()
            self._experiment, self._mode = None, "get"


def _final_values(results: Mapping[str, Any]) -> dict[str, Any]:
    """The final metrics as `final/test/accuracy`, beside the verdict and its reason."""
    metrics = {f"final/{name}": value for name, value in results.items() if "/" in name and isinstance(value, float)}
    return metrics | {name: str(results[name]) for name in ("verdict", "verdict_rule") if name in results}


def _mlflow_name(name: str) -> str:
    """Return a metric's name that MLflow accepts: as a path, with the characters that it allows."""
    return posixpath.normpath(re.sub(r"[^\w/. -]", "_", name, flags=re.ASCII)).strip("/.")


def _read_trackers(run: Run) -> dict[str, dict[str, Any]]:
    """Read `trackers.json`; none if there is no such file or it is damaged."""
    try:
        content = json.loads(read_regular(run.trackers_file, _MAX_TRACKERS_BYTES))
        return {
            str(name): {"id": state["id"], "epochs": int(state["epochs"])}
            for name, state in content.items()
            if re.fullmatch(r"\w{1,64}", state["id"], re.ASCII)
        }
    except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return {}


def _read_rows(run: Run, last_step: int) -> list[dict[str, Any]]:
    """Read the rows of `metrics.csv` up to a training step; none if there is no file. Raises UserError if damaged."""
    return [row for row in read_epochs(run) if int(row["step"]) <= last_step]
