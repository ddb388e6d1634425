"""Objects out of the config: data, module, trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from fashion_cnn.analysis.monitor import GAP_METRICS, GapMonitor, PredictionCollector
from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError, did_you_mean
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.hardware import resolve_precision, select_device
from fashion_cnn.training.callbacks import EpochLog, SeedEachEpoch, Stopwatch
from fashion_cnn.training.checkpoints import AtomicCheckpointIO
from fashion_cnn.training.loggers import MetricsCSV


def check_seed(config: DictConfig) -> int:
    """The run's seed. Raises UserError where it is none."""
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} is not possible: give 0 to {2**32 - 1}.")
    return int(config.seed)


def data(config: DictConfig) -> ImageDataModule:
    """The data module, its training images in memory; the properties that it detected are put into the config."""
    datamodule: ImageDataModule = instantiate(config.data, _convert_="all")
    datamodule.prepare_data()
    datamodule.setup("fit")
    if datamodule.detected is not None:
        config.data.detected = datamodule.detected
    return datamodule


def module(config: DictConfig, datamodule: ImageDataModule) -> ImageClassifier:
    """The module, as descriptions, so that its checkpoint can rebuild it."""
    classifier: ImageClassifier = instantiate(
        config.model,
        optimizer=config.optimizer,
        schedule=config.schedule,
        mixing=config.get("mixing"),
        distillation=config.get("distillation"),
        embedding_loss=config.get("embedding_loss"),
        image_shape=datamodule.image_shape,
        num_classes=datamodule.num_classes,
        _convert_="all",
        _recursive_=False,
    )
    try:  # The trainer makes its own; here a wrong option comes out before there is a run.
        classifier.make_optimizer(total_steps=1000)
    except UserError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"optimizer or schedule: {error}. See conf/optimizer and conf/schedule.") from error
    return classifier


def trainer(
    config: DictConfig, datamodule: ImageDataModule, directory: Path, further: Sequence[Callback] = ()
) -> Trainer:
    """The Trainer with its callbacks, the `further` ones last, and loggers, all of which write into `directory`."""
    if not isinstance(config.trainer.max_epochs, int) or config.trainer.max_epochs < 1:
        raise UserError(f"trainer.max_epochs={config.trainer.max_epochs} is not possible: give 1 or more.")
    if config.trainer.limit_train_batches == 0:
        raise UserError("trainer.limit_train_batches=0 leaves nothing to train on: give 1 or more, or a share.")
    callbacks, loggers = _callbacks(config, datamodule), _loggers(config, directory)
    if not any(isinstance(logger, MetricsCSV) for logger in loggers):
        raise UserError("logger.csv cannot be dropped: the report and a resumed run read the curves from metrics.csv.")
    if not any(isinstance(callback, ModelCheckpoint) and callback.monitor is None for callback in callbacks):
        raise UserError("callbacks.last cannot be dropped: it is what a stopped run goes on from.")
    for name in ("best", "last"):
        part = config.callbacks.get(name)
        if part is not None and part.get("filename", name) != name:
            raise UserError(
                f"callbacks.{name}.filename={part.filename} is not possible: other commands look for {name}.ckpt."
            )
    if not further:
        _check_watched(callbacks, datamodule)
    # Without validation images Lightning is to leave the validation out.
    limits = {} if datamodule.val_size else {"limit_val_batches": 0}
    return _trainer(
        config,
        **limits,
        callbacks=[Stopwatch(), SeedEachEpoch(config.seed), EpochLog(), *callbacks, *further],
        logger=loggers,
        default_root_dir=directory,
    )


def evaluation_trainer(config: DictConfig, collector: PredictionCollector) -> Trainer:
    """A Trainer of the same hardware and precision that only measures, and hands what it sees to `collector`.

    A fresh one, since EMAWeightAveraging would have the training's own measure the raw weights.
    """
    bar: list[Callback] = [callback for callback in _parts(config.callbacks) if isinstance(callback, ProgressBar)]
    return _trainer(
        config,
        callbacks=[*bar, collector],
        logger=False,
        enable_checkpointing=False,
        devices=_first(config.trainer),
        num_nodes=1,
        strategy="auto",
        profiler=None,
    )


def _first(trainer: DictConfig) -> int | list[int]:
    """One device of those that a training takes: the first of the GPUs that it names, where that is here, else any."""
    devices = trainer.devices
    if isinstance(devices, str) and "," in devices:
        devices = [int(number) for number in devices.split(",") if number.strip()]
    named = isinstance(devices, Sequence) and not isinstance(devices, str) and len(devices) > 0
    on_gpu = select_device(trainer.accelerator).type == "cuda"
    return [int(devices[0])] if named and on_gpu and devices[0] < torch.cuda.device_count() else 1


def _trainer(config: DictConfig, *, callbacks: list[Callback], **settings: Any) -> Trainer:
    if not config.trainer.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    if config.trainer.deterministic:
        # Fresh memory filled with NaN is a help to find mistakes, and costs a pass over each tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Where the bar was dropped, Lightning would put in one of its own.
    settings["enable_progress_bar"] = any(isinstance(callback, ProgressBar) for callback in callbacks)
    built: Trainer = instantiate(
        config.trainer,
        **settings,
        callbacks=callbacks,
        precision=resolve_precision(config.trainer.precision, config.trainer.accelerator),
        plugins=[AtomicCheckpointIO()],
        # The loaders deal the images out themselves: Lightning's sampler would show some of them twice.
        use_distributed_sampler=False,
        _convert_="all",
    )
    return built


def _callbacks(config: DictConfig, datamodule: ImageDataModule) -> list[Callback]:
    callbacks = _parts(config.callbacks)
    if datamodule.val_size:
        return callbacks
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and not callback.monitor.startswith("running/"):
            raise UserError(
                f"callbacks.early_stopping watches {callback.monitor}, and without validation images nothing measures "
                "it: keep some (data.val_size, data.val_share), or watch running/loss."
            )
    # There is nothing to choose the best by either: the last weights stand for the run.
    return [callback for callback in callbacks if not (isinstance(callback, ModelCheckpoint) and callback.monitor)]


def _check_watched(callbacks: Sequence[Callback], datamodule: ImageDataModule) -> None:
    """Refuse to watch what nothing measures, which would come out after an epoch, or never."""
    if not all(type(callback).__module__.startswith(("fashion_cnn.", "lightning.")) for callback in callbacks):
        return  # Others may measure more.
    splits = ["running"]
    if datamodule.val_size:
        splits += ["val", "train", "gap"] if datamodule.probe_size else ["val"]
    measured = [f"{split}/{figure}" for split in splits for figure in ("loss", "accuracy")]
    if "gap" in splits and any(isinstance(callback, GapMonitor) for callback in callbacks):
        measured += GAP_METRICS
    for callback in callbacks:
        for option in ("monitor", "tie"):
            name = getattr(callback, option, None)
            if name is not None and name not in measured and not name.startswith("gap_by_class/"):
                raise UserError(
                    f"{type(callback).__name__}: {option}={name} is measured by nothing."
                    f"{did_you_mean(name, measured)} There are {', '.join(measured)}."
                )


def _loggers(config: DictConfig, directory: Path) -> list[Logger]:
    return [instantiate(part, save_dir=str(directory), _convert_="all") for part in _described(config.logger)]


def _parts(group: DictConfig | None) -> list[Callback]:
    return [instantiate(part, _convert_="all") for part in _described(group)]


def _described(group: DictConfig | None) -> list[DictConfig]:
    """The parts of a group of named parts; one set to null is dropped."""
    return [part for part in (group or {}).values() if OmegaConf.is_dict(part)]
