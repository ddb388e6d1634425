"""One training, from its settings to its report."""

import logging
import os
import shlex
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from fashion_cnn import runs
from fashion_cnn.analysis.monitor import GapMonitor
from fashion_cnn.analysis.report import write_model_card, write_report
from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import Interrupted, Pruned, UserError
from fashion_cnn.inference.network import initialise_from
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.hardware import keep_freed_memory
from fashion_cnn.runs import Run
from fashion_cnn.runs.files import update_config
from fashion_cnn.runs.overrides import LATEST_WEIGHTS
from fashion_cnn.training import build
from fashion_cnn.training.artifacts import write_artifacts
from fashion_cnn.training.distillation import find_teachers
from fashion_cnn.training.leakage import find_leakage, is_same_data_set
from fashion_cnn.training.results import collect_results
from fashion_cnn.training.resume import prepare_to_resume, restore_config

# In the environment of the further processes of a distributed training.
_RUN_OF_FIRST_PROCESS = "FASHION_CNN_RUN"


def run_training(
    config: DictConfig,
    *,
    directory: Path | None,
    callbacks: Sequence[Callback],
    in_sweep: bool,
    check_resumed: Callable[[DictConfig], None],
    print_start: Callable[..., None],
    print_end: Callable[..., None],
) -> dict[str, Any]:
    """Train, measure and report as `config` says; see `fashion_cnn.train.train`.

    Args:
        config: the settings, as `conf/train.yaml` lists them.
        directory: the run's own; one that is finished is left as it is, one that was stopped goes on.
        callbacks: beside those of the config.
        in_sweep: whether this is a job of a sweep, which trains on one device.
        check_resumed: called with the config of a run that goes on; raises UserError for values that are not possible.
        print_start: called before the training, see `fashion_cnn.cli.console.print_start`.
        print_end: called with the results, see `fashion_cnn.cli.console.print_end`.

    Returns:
        The results, with the run's directory as `"run"`.
    """
    quieten_lightning()
    keep_freed_memory()
    config = update_config(config)
    run = _begun_before(config, directory)
    if run is not None and directory is not None and run.state == "finished":
        return {**run.results(), "run": str(run.path)}
    if run is not None:
        asked = config.resume is not None and _RUN_OF_FIRST_PROCESS not in os.environ
        config = restore_config(config, run, checked=asked, check_values=check_resumed)
    # What can be wrong with the settings comes out here, before there is a run directory.
    seed_everything(build.check_seed(config), verbose=False)
    data = build.data(config)
    data.check_classes()
    if config.get("distillation"):
        config.distillation.teachers = find_teachers(config)
    module = build.module(config, data)
    if config.init_from is not None and not (run and run.last_checkpoint.exists()):
        source = runs.find_run(config.init_from, Path(config.runs_dir))
        _check_unseen(source, config)
        initialise_from(module, source)
        config.init_from = str(source.path.resolve())
        # So that the commands told afterwards start from the same run, too.
        named = {LATEST_WEIGHTS: f"init_from={config.init_from}"}
        config.overrides = [named.get(override, override) for override in config.overrides or ()]
    if config.trainer.fast_dev_run:
        return _try_out(config, data, module)
    started_before = run is not None
    run = run or (Run(directory) if directory else runs.new_run(Path(config.runs_dir), config.name))
    trainer = build.trainer(config, data, run.path, callbacks)
    if in_sweep:
        check_one_device(trainer, "job of a sweep", ", or start the trainings one by one, without -m")
    if not trainer.is_global_zero:
        # A further process of a distributed training takes part in the fit and leaves the rest to the first.
        _fit(trainer, module, data, run)
        return {}
    run.create()
    with run.locked(), _ending_told(run):
        if started_before:
            prepare_to_resume(trainer, module, run)
        else:
            run.write_config(config)
        print_start(config, run, module, data, brief=directory is not None)
        with _shared_with_processes(run):
            _fit(trainer, module, data, run)
        results, predictions = collect_results(config, trainer, module, data, run)
        if any(isinstance(callback, GapMonitor) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            write_artifacts(config, trainer, module, data, run, results, predictions)
        write_report(run, results)
        write_model_card(run, config, data, results)
        run.write_results(results)
        print_end(results, run, config, brief=directory is not None)
    return {**results, "run": str(run.path)}


def _check_unseen(source: Run, config: DictConfig) -> None:
    """Raise UserError where the weights to start from were learned from images that are to stay unseen here."""
    theirs = source.config().data
    if is_same_data_set(theirs, config.data) and (difference := find_leakage(theirs, config.data)):
        raise UserError(f"init_from={source.path} learned from {difference}: say the same, so that they stay unseen.")


def _begun_before(config: DictConfig, directory: Path | None) -> Run | None:
    """The run to go on with, or to take part in; None for a new one."""
    if _RUN_OF_FIRST_PROCESS in os.environ:
        return Run(Path(os.environ[_RUN_OF_FIRST_PROCESS]))
    if directory is not None:
        run = Run(directory)
        return run if run.results_file.exists() or run.last_checkpoint.exists() else None
    if config.resume is not None:
        return runs.find_unfinished_run(config.resume, Path(config.runs_dir))
    return None


def check_one_device(trainer: Trainer, part: str, or_else: str = "") -> None:
    """Raise UserError where `trainer` takes several: their processes repeat the command, and with it all its trainings.

    part: what trains, in words. or_else: what else can be done than to take one.
    """
    if (devices := trainer.num_devices * trainer.num_nodes) > 1:
        raise UserError(f"One {part} trains on one device, not on {devices}: say trainer.devices=1{or_else}.", status=2)


@contextmanager
def _shared_with_processes(run: Run) -> Iterator[None]:
    """Tell the processes that Lightning starts for a distributed training which run they are part of."""
    os.environ[_RUN_OF_FIRST_PROCESS] = str(run.path)
    try:
        yield
    finally:
        del os.environ[_RUN_OF_FIRST_PROCESS]
        if torch.distributed.is_initialized():
            # The others are done: what follows is measured by this process alone.
            torch.distributed.destroy_process_group()


def _fit(trainer: Trainer, module: ImageClassifier, data: ImageDataModule, run: Run) -> None:
    checkpoint = run.last_checkpoint if run.last_checkpoint.exists() else None
    module.resumes = checkpoint is not None
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def _try_out(config: DictConfig, data: ImageDataModule, module: ImageClassifier) -> dict[str, Any]:
    """Lightning's `fast_dev_run`: every loop for a few batches, nothing kept."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build.trainer(config, data, Path(folder))
        with _stop_told("Stopped; nothing was kept."):
            trainer.fit(module, datamodule=data)
            if config.test:
                trainer.test(module, datamodule=data, verbose=False)
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print("fast_dev_run: every loop ran; nothing was kept.")
    return figures


@contextmanager
def _ending_told(run: Run) -> Iterator[None]:
    """Say how to go on after a stop, and leave the reason of a failure in the run directory."""
    run.error_file.unlink(missing_ok=True)
    command = shlex.join(["python", "-m", "fashion_cnn.train", f"resume={run.path}"])
    try:
        with _stop_told(f"Stopped. Go on where it was with:\n  {command}"):
            yield
    except Pruned as error:
        run.error_file.write_text(f"{error}\n")
        raise
    except Exception as error:
        run.error_file.write_text(f"{type(error).__name__}: {error}\n")
        raise


@contextmanager
def _stop_told(message: str) -> Iterator[None]:
    try:
        yield
    except SIGTERMException:
        raise Interrupted(message, status=143) from None
    # Lightning turns Ctrl-C during fit into an exit of its own.
    except (KeyboardInterrupt, SystemExit):
        raise Interrupted(message) from None


def quieten_lightning() -> None:
    """Leave out what Lightning says about every run; its warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)
    # The data lie in memory: workers would only copy them to and fro.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # All figures are logged at the end of an epoch.
    warnings.filterwarnings("ignore", ".*log_every_n_steps.*")
    # Lightning's own use of torch.
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
    # Resuming writes on into the run's own directory, on purpose.
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")
    # They are of all processes before they are logged.
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
