"""Build the data module, the LightningModule and the Trainer of a training from its config."""

import inspect
import operator
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint, ProgressBar
from omegaconf import DictConfig, OmegaConf, open_dict

from fashion_cnn.analysis.monitor import GAP_METRICS, GapMonitor, PredictionCollector
from fashion_cnn.analysis.settings import run_settings
from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError, did_you_mean
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.hardware import resolve_precision, select_device
from fashion_cnn.runs.overrides import check_epochs
from fashion_cnn.runs.trust import instantiate
from fashion_cnn.training.callbacks import EpochLog, SeedEachEpoch, Stopwatch
from fashion_cnn.training.checkpoints import AtomicCheckpointIO
from fashion_cnn.training.loggers import MetricsCSV


def check_seed(config: DictConfig) -> int:
    """Return the run's seed.

    Raises:
        UserError: if it is out of range.
    """
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} is not possible: give 0 to {2**32 - 1}.")
    return int(config.seed)


def apply_remedy(config: DictConfig) -> None:
    """Change the settings that `remedy` (conf/remedy) names, relative to their values; afterwards it is null.

    Where the last epoch had a validation pass, it keeps one: the interval of the passes becomes shorter if necessary.

    Raises:
        UserError: if the config lacks a setting, or its value is no number.
    """
    remedy = config.get("remedy")  # Missing in runs of older versions.
    if remedy is None:
        return
    config.remedy = None
    keeps_last_pass = not _epochs_after_last_pass(config)
    with open_dict(config):
        for key, value in (remedy.get("set") or {}).items():
            OmegaConf.update(config, str(key), value, merge=False)
        for change, function in (("multiply", _multiply), ("add", operator.add)):
            for key, number in (remedy.get(change) or {}).items():
                value = OmegaConf.select(config, str(key))
                if value is None:
                    raise UserError(f"remedy: this training has no {key} to change. Choose another remedy.")
                OmegaConf.update(config, str(key), function(value, number), merge=False)
        for key, divisor in (remedy.get("divide") or {}).items():
            value, share = (OmegaConf.select(config, str(name)) for name in (key, divisor))
            if value is None or not share:
                raise UserError(f"remedy: {key} divided by {divisor} is not possible: they are {value} and {share}.")
            OmegaConf.update(config, str(key), _multiply(value, 1 / share), merge=False)
    while keeps_last_pass and _epochs_after_last_pass(config):
        config.trainer.check_val_every_n_epoch -= 1
    fraction = OmegaConf.select(config, "data.train_fraction")
    if fraction is not None and fraction > 1:
        raise UserError(f"remedy: data.train_fraction would be {fraction:g}: there are no further training images.")


def _epochs_after_last_pass(config: DictConfig) -> int:
    """Count the epochs after the last validation pass."""
    epochs, every = config.trainer.max_epochs, config.trainer.get("check_val_every_n_epoch")
    return int(epochs % every) if isinstance(epochs, int) and every else 0


def _multiply(value: Any, factor: float) -> Any:
    """Multiply a number, or each width of a network, which stays a multiple of eight; whole numbers stay whole."""
    if OmegaConf.is_list(value):
        return [max(8, round(width * factor / 8) * 8) for width in value]
    product = value * factor
    return max(1, round(product)) if isinstance(value, int) else product


def averages_flips(config: DictConfig) -> bool:
    """Return whether the evaluations of a training also average over each image and its mirror image.

    Args:
        config: the settings of the training. With `flip_average=auto`, they must mirror the training images.

    Raises:
        UserError: if `flip_average` is none of its choices.
    """
    choice = config.get("flip_average", "auto")  # Missing in runs of older versions.
    if choice != "auto" and not isinstance(choice, bool):
        raise UserError(f"flip_average={choice} is not possible: choose auto, true or false.", status=2)
    flip = OmegaConf.select(config, "data.augmentation.flip")
    return choice if isinstance(choice, bool) else OmegaConf.is_dict(flip) and flip.get("p") != 0


def check_optimizer(config: DictConfig) -> None:
    """Build the optimizer and the schedule for two weights: wrong values fail before the data set is downloaded.

    Raises:
        UserError: if they cannot be built.
    """
    optimizer, schedule = (instantiate(config.get(part), _convert_="all") for part in ("optimizer", "schedule"))
    weights, bias = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    with _optimizer_errors():
        built = optimizer([{"params": [weights]}, {"params": [bias], "weight_decay": 0.0}])
        schedule(built, 1000)


@contextmanager
def _optimizer_errors() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"optimizer or schedule: {error}. See conf/optimizer and conf/schedule.") from error


def data(config: DictConfig) -> ImageDataModule:
    """Build the data module and load its images; what it detects in them, or computes, is written into the config."""
    datamodule: ImageDataModule = instantiate(config.data, _convert_="all")
    datamodule.prepare_data()
    datamodule.setup("fit")
    if datamodule.has_test:
        datamodule.setup("test")
    if datamodule.detected is not None:
        config.data.detected = datamodule.detected
    for name, sha256 in datamodule.corrections.items():
        with open_dict(config):
            # Other commands find the file from any folder.
            config.data[name] = str(Path(config.data[name]).expanduser().absolute())
            config.data[f"{name}_sha256"] = sha256
    if datamodule.detected is not None:
        return datamodule
    # The run stores them, since commands that open it need not have the images.
    arguments = inspect.signature(type(datamodule)).parameters
    takes_all = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    for name, values in datamodule.computed_statistics.items():
        if not takes_all and name not in arguments:
            raise UserError(
                f"{config.data._target_} takes no argument '{name}', which is computed: add it, or **settings."
            )
        with open_dict(config):
            config.data[name] = values
    return datamodule


def module(config: DictConfig, datamodule: ImageDataModule) -> ImageClassifier:
    """Build the module from configs of its parts, which its checkpoint stores to rebuild it.

    Raises:
        UserError: if the network, the optimizer or the schedule cannot be built.
    """
    classifier: ImageClassifier = instantiate(
        config.model,
        optimizer=config.optimizer,
        schedule=config.schedule,
        # Missing in runs of older versions.
        loss=config.get("loss"),
        metrics=config.get("metrics"),
        mixing=config.get("mixing"),
        distillation=config.get("distillation"),
        embedding_loss=config.get("embedding_loss"),
        image_shape=datamodule.image_shape,
        num_classes=datamodule.num_classes,
        _convert_="all",
        _recursive_=False,
    )
    # The trainer builds its own optimizer: this one finds wrong options before there is a run directory.
    with _optimizer_errors():
        classifier.make_optimizer(total_steps=1000)
    return classifier


def trainer(
    config: DictConfig, datamodule: ImageDataModule, directory: Path, extra_callbacks: Sequence[Callback] = ()
) -> Trainer:
    """Build the Trainer of a training, with its callbacks and loggers.

    Args:
        config: the settings of the run.
        datamodule: the data, with the training images loaded.
        directory: run directory, into which checkpoints and loggers write.
        extra_callbacks: called after those of the config.

    Raises:
        UserError: if settings of the trainer, the callbacks or the loggers cannot work.
    """
    check_epochs(config)
    if config.trainer.limit_train_batches == 0:
        raise UserError("trainer.limit_train_batches=0 leaves no training batch: give 1 or more, or a fraction.")
    _check_loggers(config.logger)
    callbacks, loggers = _make_callbacks(config, datamodule), _instantiate_parts(config.logger, save_dir=str(directory))
    if not any(isinstance(logger, MetricsCSV) for logger in loggers):
        raise UserError("logger.csv cannot be dropped: the report and a resumed run read metrics.csv.")
    checkpoints = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    if all(callback.monitor for callback in checkpoints):
        raise UserError("callbacks.last cannot be dropped: a stopped run is resumed from its last checkpoint.")
    if any(callback.every_n_epochs != 1 for callback in checkpoints if callback.filename == "last"):
        raise UserError(
            "callbacks.last writes the weights of each epoch: leave out every_n_epochs, every_n_train_steps and "
            "train_time_interval."
        )
    for name in ("best", "last"):
        part = config.callbacks.get(name)
        if part is not None and part.get("filename", name) != name:
            raise UserError(
                f"callbacks.{name}.filename={part.filename} is not possible: other commands read {name}.ckpt."
            )
    if not extra_callbacks:
        metrics = [name for name, part in (config.get("metrics") or {}).items() if part]
        _check_monitored(callbacks, datamodule, metrics, validates=_validates(config, datamodule))
    # Lightning skips validation at a limit of 0.
    limits = {} if datamodule.val_size else {"limit_val_batches": 0}
    required = [Stopwatch(), SeedEachEpoch(config.seed), EpochLog(run_settings(config))]
    return _make_trainer(
        config,
        **limits,
        callbacks=[*required, *callbacks, *extra_callbacks],
        logger=loggers,
        default_root_dir=directory,
    )


def short_trainer(config: DictConfig, steps: int, callbacks: list[Callback]) -> Trainer:
    """Build a Trainer of some training steps without validation, checkpoints and loggers.

    Args:
        config: the settings of the run.
        steps: number of steps, over as many epochs as they take.
        callbacks: called in place of those of the config.
    """
    return _make_trainer(
        config,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        max_epochs=-1,
        max_steps=steps,
        limit_val_batches=0,
        fast_dev_run=False,
        profiler=None,
    )


def evaluation_trainer(config: DictConfig, collector: PredictionCollector) -> Trainer:
    """Build a Trainer of the same precision on one device of the same hardware, for validation and test only.

    The Trainer of a training with EMAWeightAveraging would evaluate the raw weights.

    Args:
        config: the settings of the run.
        collector: callback that receives the predictions.
    """
    bar = [callback for callback in _instantiate_parts(config.callbacks) if isinstance(callback, ProgressBar)]
    device = select_device(config.trainer.accelerator, config.trainer.devices)
    return _make_trainer(
        config,
        callbacks=[*bar, collector],
        logger=False,
        enable_checkpointing=False,
        devices=[device.index] if device.type == "cuda" else 1,
        num_nodes=1,
        strategy="auto",
        profiler=None,
    )


def _make_trainer(config: DictConfig, *, callbacks: list[Callback], **settings: Any) -> Trainer:
    if not config.trainer.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    if config.trainer.deterministic:
        # Deterministic mode would fill each new tensor with NaN, a debugging aid that costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Lightning would add a progress bar of its own.
    settings["enable_progress_bar"] = any(isinstance(callback, ProgressBar) for callback in callbacks)
    built: Trainer = instantiate(
        config.trainer,
        **settings,
        callbacks=callbacks,
        precision=resolve_precision(config.trainer.precision, config.trainer.accelerator),
        plugins=[AtomicCheckpointIO()],
        # The data loaders split the images between processes; Lightning's sampler would repeat some images.
        use_distributed_sampler=False,
        _convert_="all",
    )
    return built


def _check_loggers(group: DictConfig | None) -> None:
    """Raise UserError if MLflow's logger has no address: MLflow refuses the run directory, Lightning's default."""
    for name, part in group.items() if group else ():
        is_mlflow = OmegaConf.is_dict(part) and str(part.get("_target_")).endswith(".MLFlowLogger")
        if is_mlflow and not part.get("tracking_uri") and "MLFLOW_TRACKING_URI" not in os.environ:
            raise UserError(
                f"logger.{name!s} has no tracking_uri: give the address of the MLflow server, or a file, with "
                f"+logger.{name!s}.tracking_uri=sqlite:///mlflow.db"
            )


def _make_callbacks(config: DictConfig, datamodule: ImageDataModule) -> list[Callback]:
    callbacks = _instantiate_parts(config.callbacks)
    for callback in callbacks:
        if isinstance(callback, LearningRateFinder):
            raise UserError(
                f"callbacks: {type(callback).__name__} cannot set optimizer.lr, which the schedule scales. "
                "python -m fashion_cnn.find_learning_rate suggests one in a minute, python -m fashion_cnn.train "
                "sweep=learning_rate compares several."
            )
    if _validates(config, datamodule):
        return callbacks
    remedy = "trainer.limit_val_batches above 0" if datamodule.val_size else "data.val_size or data.val_share"
    without_validation = []
    for callback in callbacks:
        monitored = (isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor) or ""
        needs_validation = bool(monitored) and not monitored.startswith("running/")
        if isinstance(callback, EarlyStopping) and needs_validation:
            raise UserError(
                f"callbacks.early_stopping monitors {monitored}, which needs validation images: "
                f"set {remedy}, or monitor running/loss."
            )
        if isinstance(callback, ModelCheckpoint) and monitored and callback.filename == "best" and not needs_validation:
            raise UserError(
                f"callbacks.best monitors {monitored}, which selects no epoch without validation images: the last "
                f"weights are the result. Leave the monitor out, or set {remedy}."
            )
        # No score selects a best checkpoint: the last weights are the result.
        if not needs_validation:
            without_validation.append(callback)
    return without_validation


def _validates(config: DictConfig, datamodule: ImageDataModule) -> bool:
    """Return whether the validation passes have images."""
    return bool(datamodule.val_size) and config.trainer.get("limit_val_batches") != 0


def _check_monitored(
    callbacks: Sequence[Callback], datamodule: ImageDataModule, metrics: Sequence[str], *, validates: bool
) -> None:
    """Raise UserError if a callback monitors a metric that is not logged; Lightning would notice late or never."""
    if not all(type(callback).__module__.startswith(("fashion_cnn.", "lightning.")) for callback in callbacks):
        return  # Callbacks from elsewhere may log metrics.
    splits = ["running"]
    if validates:
        splits += ["val", "train", "gap"] if datamodule.probe_size else ["val"]
    logged = [f"{split}/{metric}" for split in splits for metric in ("loss", "accuracy")]
    logged += [f"{split}/{metric}" for split in splits if split != "running" for metric in metrics]
    if "gap" in splits and any(isinstance(callback, GapMonitor) for callback in callbacks):
        logged += GAP_METRICS
    for callback in callbacks:
        for option in ("monitor", "tie"):
            name = getattr(callback, option, None)
            if name is not None and name not in logged and not name.startswith("gap_by_class/"):
                raise UserError(
                    f"{type(callback).__name__}: {option}={name} is not a logged metric."
                    f"{did_you_mean(name, logged)} Available: {', '.join(logged)}."
                )


def _instantiate_parts(group: DictConfig | None, **settings: Any) -> list[Any]:
    """Instantiate the entries of a config group by name, such as `callbacks`; an entry set to null is left out."""
    return [
        instantiate(part, **settings, _convert_="all") for part in (group or {}).values() if OmegaConf.is_dict(part)
    ]
