"""Resuming a stopped run, so that its results equal those of an uninterrupted run."""

from collections.abc import Callable, Iterable
from pathlib import Path

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf, open_dict

from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import config_section, confine_data, differing_weights, read_checkpoint
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run
from fashion_cnn.runs.overrides import MACHINE_KEYS, override_key
from fashion_cnn.runs.trust import check_classes
from fashion_cnn.training.loggers import ResumableLogger


def restore_config(
    config: DictConfig, run: Run, *, by_user: bool, check_values: Callable[[DictConfig], None]
) -> DictConfig:
    """Return the run's own config; only `data.root`, `data.download` and `threads` may be overridden.

    The returned overrides contain a `data.root` that was given. Other `threads` change the results.

    A relative `data.root` that does not exist is looked for in the folder in which the run was started.

    Args:
        config: the settings that the command line gives.
        run: the run to resume.
        by_user: whether a person named the run, whose overrides and stored values are then checked. A job of a sweep
            and a further process of a distributed training are not checked.
        check_values: called with the run's own config; raises UserError for impossible values.

    Raises:
        UserError: if an override would change the run.
    """
    stored = run.config()
    check_classes(stored, run.config_file)
    for name in ("data", "model", "trainer", "callbacks", "logger", "optimizer", "schedule"):
        config_section(stored, name, run.config_file)
    overrides = config.get("overrides") or []
    if by_user:
        _check_overrides(config, stored, overrides, run)
    if moved := [override for override in overrides if override_key(override) == "data.root"]:
        stored.data.root = config.data.root
        # Commands suggested at the end repeat these overrides.
        others = [override for override in stored.get("overrides") or [] if override_key(override) != "data.root"]
        stored.overrides = [*others, *moved]
    elif (root := stored.data.get("root")) and (folder := stored.get("working_dir")) and not Path(root).exists():
        original_root = Path(folder) / root
        stored.data.root = str(original_root) if original_root.exists() else root
    confine_data(stored.data, is_typed=bool(moved))
    if any(override_key(override) == "data.download" for override in overrides):
        stored.data.download = config.data.download
    if any(override_key(override) == "threads" for override in overrides):
        with open_dict(stored):  # Missing in runs of older versions.
            stored.threads = config.threads
    if by_user:
        check_values(stored)
    return stored


def _check_overrides(config: DictConfig, stored: DictConfig, overrides: Iterable[str], run: Run) -> None:
    for override in overrides:
        key = override_key(override)
        if key in MACHINE_KEYS or override in (stored.get("overrides") or []):
            continue
        value, stored_value = OmegaConf.select(config, key), OmegaConf.select(stored, key)
        if value != stored_value or value is None:
            raise UserError(
                f"resume={run.path} keeps the run's settings: {key} cannot change (it is {stored_value}). "
                f"Leave it out, or start a new run from its weights with init_from={run.path}.",
                status=2,
            )


def prepare_to_resume(trainer: Trainer, module: ImageClassifier, run: Run, config: DictConfig) -> int:
    """Drop from the loggers what was written after the last checkpoint, and store what was given on resuming.

    Returns:
        The number of finished epochs.

    Raises:
        UserError: if that checkpoint cannot be read or belongs to another network.
    """
    step, epochs = -1, 0
    if run.last_checkpoint.exists():
        remedy = "Delete it to restart the run from its first epoch."
        try:
            checkpoint = read_checkpoint(run.last_checkpoint)
        except UserError as error:
            raise UserError(f"{error} {remedy}") from error
        if differing := differing_weights(module.state_dict(), checkpoint["state_dict"]):
            raise UserError(
                f"{run.last_checkpoint} belongs to another network than {run.config_file} describes: "
                f"{differing[0]} does not fit. {remedy}"
            )
        step, epochs = checkpoint["global_step"], checkpoint["epoch"] + 1
    for logger in trainer.loggers:
        if isinstance(logger, ResumableLogger):
            logger.resume_after(step, epochs)
    stored = run.config()
    if any(OmegaConf.select(config, key) != OmegaConf.select(stored, key) for key in ("data.root", "threads")):
        run.replace_config(config)
    return int(epochs)
