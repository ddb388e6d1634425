"""Run one training: prepare the data and the network, fit, evaluate, and write the results into the run directory."""

import logging
import os
import sys
import tempfile
import threading
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
from fashion_cnn.errors import Interrupted, Pruned, UserError, disk_error, missing_file
from fashion_cnn.inference.network import initialise_from
from fashion_cnn.metrics.memorisation import write_subset_logits
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.hardware import keep_freed_memory, resolve_threads, restored_threads
from fashion_cnn.runs import Run
from fashion_cnn.runs.files import update_config
from fashion_cnn.runs.overrides import LATEST_WEIGHTS
from fashion_cnn.runs.trust import packages_to_trust, resume_command, trust_classes
from fashion_cnn.training import build
from fashion_cnn.training.artifacts import write_artifacts
from fashion_cnn.training.distillation import find_teachers
from fashion_cnn.training.leakage import check_leakage, write_training_images
from fashion_cnn.training.loggers import ResultsLogger
from fashion_cnn.training.results import collect_logits, collect_results
from fashion_cnn.training.resume import prepare_to_resume, restore_config

# Environment variable that gives the run directory to the other processes of a distributed training.
_RUN_VARIABLE = "FASHION_CNN_RUN"


@restored_threads()
def run_training(
    config: DictConfig,
    *,
    directory: Path | None,
    callbacks: Sequence[Callback],
    in_sweep: bool,
    check_resumed: Callable[[DictConfig], None],
    print_start: Callable[..., None] | None,
    print_end: Callable[..., None] | None,
) -> dict[str, Any]:
    """Train, evaluate and report as `config` describes; see `fashion_cnn.train.train`.

    Args:
        config: the settings, as `conf/train.yaml` lists them.
        directory: run directory, in place of a new one. A finished run there is returned, an unfinished one resumed.
        callbacks: added to those of the config.
        in_sweep: whether this is a job of a sweep, which trains on one device.
        check_resumed: called with the config of a resumed run; raises UserError for impossible values.
        print_start: called before the training, see `fashion_cnn.cli.console.print_start`; None prints nothing.
        print_end: called with the results, see `fashion_cnn.cli.console.print_end`; None prints nothing.

    Returns:
        The contents of results.json, and the run directory as `"run"`.

    Raises:
        UserError: if the settings cannot work.
        Interrupted: if the training was stopped.
    """
    quieten_lightning()
    keep_freed_memory()
    existing = _existing_run(config, directory)
    if existing and directory and existing.state == "finished":
        if existing.keeps_only_logits:
            existing.remove_all_but_logits()  # A training that was killed at its very end has left them.
        return {**existing.results(), "run": str(existing.path)}

    config, data, module = prepare(config, existing, check_resumed)
    if config.trainer.fast_dev_run:
        return _fast_dev_run(config, data, module)
    run = existing or (Run(directory) if directory else runs.new_run(Path(config.runs_dir), config.name))
    trainer = build.trainer(config, data, run.path, callbacks)
    set_threads(config, trainer)
    if in_sweep:
        check_one_device(trainer, "job of a sweep", ", or train without -m")
    if not trainer.is_global_zero:
        # The first process of a distributed training writes and evaluates for all.
        fit(trainer, module, data, run)
        return {}

    run.create()
    with run.locked(), _record_failure(run, packages_to_trust(config)):
        finished_epochs = None
        if existing:
            finished_epochs = prepare_to_resume(trainer, module, run, config)
        else:
            write_training_images(run, config, data)
            run.write_config(config)
        if print_start:
            print_start(
                config, run, module, data, trainer, finished_epochs=finished_epochs, brief=directory is not None
            )
        with _loggers_closed(trainer):
            with _export_run(run):
                fit(trainer, module, data, run)
            results = publish(config, trainer, module, data, run)
        if print_end:
            print_end(results, run, config, brief=directory is not None)
    return {**results, "run": str(run.path)}


def set_threads(config: DictConfig, trainer: Trainer) -> None:
    """Set the number of CPU threads; one that was chosen for this machine is written into the config."""
    threads = config.get("threads")  # Missing in runs of older versions.
    is_measured = trainer.strategy.root_device.type == "cpu" and trainer.num_devices * trainer.num_nodes == 1
    if threads is None or (threads == "auto" and not is_measured):
        return
    config.threads = resolve_threads(threads, config.trainer.precision)
    torch.set_num_threads(config.threads)


def prepare(
    config: DictConfig, existing: Run | None, check_resumed: Callable[[DictConfig], None]
) -> tuple[DictConfig, ImageDataModule, ImageClassifier]:
    """Seed, load the data and build the network; wrong settings fail here, before there is a run directory.

    Args:
        config: settings as composed; `init_from` and `distillation.teachers` become absolute paths in it.
        existing: the run to resume, whose own config replaces `config`; None for a new run.
        check_resumed: see `run_training`.

    Returns:
        The settings of the training, the data module with its training images loaded, and the module to train.
    """
    config = update_config(config)
    build.apply_remedy(config)
    trust_classes(config)
    if existing:
        by_user = config.resume is not None and _RUN_VARIABLE not in os.environ
        config = restore_config(config, existing, by_user=by_user, check_values=check_resumed)
    seed_everything(build.check_seed(config), verbose=False)
    _check_keep(config)
    build.check_optimizer(config)
    build.averages_flips(config)  # Raises UserError.
    data = build.data(config)
    data.check_classes()
    if config.get("distillation"):
        config.distillation.teachers = find_teachers(config)
        teachers = [("distillation.teachers", Run(Path(path))) for path in config.distillation.teachers]
        check_leakage(teachers, config, data)
    module = build.module(config, data)
    if config.init_from is not None and not (existing and existing.last_checkpoint.exists()):
        source = runs.find_run(config.init_from, Path(config.runs_dir))
        check_leakage([("init_from", source)], config, data)
        initialise_from(module, source, data.class_names)
        config.init_from = str(source.path.resolve())
        # Commands suggested at the end repeat these overrides: they must start from the same run.
        resolved = {LATEST_WEIGHTS: f"init_from={config.init_from}"}
        config.overrides = [resolved.get(override, override) for override in config.overrides or ()]
    return config, data, module


def fit(trainer: Trainer, module: ImageClassifier, data: ImageDataModule, run: Run) -> None:
    """Train the module, from the run's last checkpoint if it has one."""
    checkpoint = run.last_checkpoint if run.last_checkpoint.exists() else None
    module.resumes = checkpoint is not None
    if checkpoint is not None:
        # With trainer.max_steps, Lightning would repeat the end of the epoch, without its batches, as if the checkpoint
        # had been written within it.
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def publish(
    config: DictConfig, trainer: Trainer, module: ImageClassifier, data: ImageDataModule, run: Run
) -> dict[str, Any]:
    """Evaluate the best weights and write plots, tables, report and model card into the run directory.

    Returns:
        The results. `results.json` is written last and atomically: its presence means that the run is finished.
    """
    if keeps_logits(config):
        results, subset_logits = collect_logits(config, trainer, module, data, run)
        write_subset_logits(run.logits_file, subset_logits)
        run.write_results(results)
        run.remove_all_but_logits()
        return results
    results, predictions = collect_results(config, trainer, module, data, run)
    if any(isinstance(callback, GapMonitor) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        write_artifacts(config, trainer, module, data, run, results, predictions)
    write_report(run, results)
    write_model_card(run, config, data, results)
    run.write_results(results)
    for logger in trainer.loggers:
        if isinstance(logger, ResultsLogger):
            try:
                logger.log_results(results)
            except Exception as error:  # Servers fail in many ways, and the run is finished.
                print(f"{type(logger).__name__} has not stored the results: {error}", file=sys.stderr)
    return results


def keeps_logits(config: DictConfig) -> bool:
    """Return whether a run keeps its logits but no weights (`keep=logits`)."""
    # The option is missing in runs of older versions.
    return bool(config.get("keep", "all") == "logits")


def _check_keep(config: DictConfig) -> None:
    """Raise UserError for an unknown `keep`, or if held-out images may have been training images before."""
    if config.get("keep", "all") not in ("all", "logits"):
        raise UserError(f"keep={config.keep} is not possible: choose all or logits.", status=2)
    if not keeps_logits(config):
        return
    for option, value in (("init_from", config.init_from), ("distillation", config.get("distillation"))):
        if value is not None:
            raise UserError(
                f"keep=logits cannot be combined with {option}: that network may have been trained on the held-out "
                f"images. Leave {option} out.",
                status=2,
            )


@contextmanager
def _loggers_closed(trainer: Trainer) -> Iterator[None]:
    """Close the loggers that have connections, also after a failure."""
    try:
        yield
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, ResultsLogger):
                logger.close()


def _existing_run(config: DictConfig, directory: Path | None) -> Run | None:
    """The run to resume or, in a process of a distributed training, to take part in; None for a new run."""
    if _RUN_VARIABLE in os.environ:
        return Run(Path(os.environ[_RUN_VARIABLE]))
    if directory is not None:
        run = Run(directory)
        return run if run.results_file.exists() or run.last_checkpoint.exists() else None
    if config.resume is not None:
        return runs.find_unfinished_run(config.resume, Path(config.runs_dir))
    return None


def check_one_device(trainer: Trainer, part: str, alternative: str = "") -> None:
    """Raise UserError if `trainer` uses several devices, whose processes would each repeat the whole command.

    Args:
        trainer: the trainer of one part of a command that trains several times.
        part: name of that part in the message, such as "job of a sweep".
        alternative: further remedy, appended to the message.
    """
    if (devices := trainer.num_devices * trainer.num_nodes) > 1:
        raise UserError(
            f"A {part} trains on one device, not on {devices}: set trainer.devices=1{alternative}.", status=2
        )


@contextmanager
def _export_run(run: Run) -> Iterator[None]:
    """Give the run directory to the processes that Lightning starts for a distributed training."""
    os.environ[_RUN_VARIABLE] = str(run.path)
    try:
        yield
    finally:
        del os.environ[_RUN_VARIABLE]
        if torch.distributed.is_initialized():
            # The other processes have ended: this one evaluates alone.
            torch.distributed.destroy_process_group()


def _fast_dev_run(config: DictConfig, data: ImageDataModule, module: ImageClassifier) -> dict[str, Any]:
    """Run every loop for the few batches of Lightning's `fast_dev_run`, and keep nothing."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build.trainer(config, data, Path(folder))
        with raise_interrupted("Stopped; nothing was kept."):
            trainer.fit(module, datamodule=data)
            if config.test and data.has_test:
                trainer.test(module, datamodule=data, verbose=False)
    print("fast_dev_run: every loop ran; nothing was kept.")
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@contextmanager
def _record_failure(run: Run, packages: Sequence[str]) -> Iterator[None]:
    """Record the reason of a failure; add the command that resumes the run to an interruption or a disk error.

    Args:
        run: the run.
        packages: those whose classes its config names, see `packages_to_trust`.
    """
    run.error_file.unlink(missing_ok=True)
    command = resume_command(run.path, packages)
    try:
        with raise_interrupted(f"Stopped. Resume with:\n  {command}"), _thread_errors_shortened(run):
            yield
    except Exception as error:
        if missing_file(error, run.path) is None:
            run.write_error(str(error) if isinstance(error, Pruned) else f"{type(error).__name__}: {error}")
        if isinstance(error, UserError) or (described := _disk_error(error, run)) is None:
            raise
        # A run without a config could only be started again.
        resume = f" Then resume with:\n  {command}" if run.config_file.exists() else ""
        raise UserError(f"{described}{resume}") from error


def _disk_error(error: BaseException, run: Run) -> UserError | None:
    """Describe an error of the disk, or the removal of the run directory; return None for any other error."""
    if (file := missing_file(error, run.path)) is None:
        return disk_error(error, run.path)
    if run.config_file.exists():
        return UserError(f"{file} was removed during the training: restore it from a copy, if there is one.")
    return UserError(f"{run.path} was removed during the training: train again, or restore it from a copy.")


@contextmanager
def _thread_errors_shortened(run: Run) -> Iterator[None]:
    """Print one line in place of a traceback if a thread meets an error of the disk, unless the block fails too.

    The next call of TensorBoard's writer, if there is one, raises the error of its thread.
    """
    print_traceback = threading.excepthook
    errors: list[UserError] = []

    def keep_error(args: Any) -> None:
        if args.exc_value and (described := _disk_error(args.exc_value, run)):
            errors.append(described)
        else:
            print_traceback(args)

    threading.excepthook = keep_error
    yield
    # After a failure of the block the hook stays: other writers can fail until the process ends.
    threading.excepthook = print_traceback
    if errors:
        print(f"A thread that writes for TensorBoard ended: {errors[0]}", file=sys.stderr)


@contextmanager
def raise_interrupted(message: str) -> Iterator[None]:
    """Raise Interrupted with `message` for Ctrl-C, for which Lightning's `fit` raises SystemExit, and for SIGTERM."""
    try:
        yield
    except SIGTERMException:
        raise Interrupted(message, status=143) from None
    except (KeyboardInterrupt, SystemExit):
        raise Interrupted(message) from None


def quieten_lightning() -> None:
    """Silence Lightning's information messages and the warnings that do not apply here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)
    # The images are in memory: workers would only copy them.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # A frozen backbone stays in evaluation mode.
    warnings.filterwarnings("ignore", r".*module\(s\) in eval mode at the start of training.*")
    # Metrics are logged at the end of each epoch.
    warnings.filterwarnings("ignore", ".*log_every_n_steps.*")
    # Lightning's own use of torch causes this warning.
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
    # A resumed run writes into its existing directory.
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")
    # Metrics are reduced over all processes before they are logged.
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
