"""Going on with a stopped run, so that the outcome is that of a run which never stopped."""

from collections.abc import Callable, Iterable

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import differing_weights, read_checkpoint
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run
from fashion_cnn.runs.overrides import LOCATION_KEYS, override_key
from fashion_cnn.training.loggers import ResumableLogger


def restore_config(
    config: DictConfig, run: Run, *, checked: bool, check_values: Callable[[DictConfig], None]
) -> DictConfig:
    """The run's own config; where the data lie may be said anew in `config`.

    checked: whether a person named the run to go on with. Raises UserError then for an override that would make it
    another run, and `check_values` is called with the run's own config.
    """
    own = run.config()
    overrides = config.get("overrides") or []
    if checked:
        _check_same(config, own, overrides, run)
    if any(override_key(override) == "data.root" for override in overrides):
        own.data.root = config.data.root
    if checked:
        # A job of a sweep is a run, whatever it failed by: as good a message as when it is typed.
        check_values(own)
    return own


def _check_same(config: DictConfig, own: DictConfig, overrides: Iterable[str], run: Run) -> None:
    for override in overrides:
        key = override_key(override)
        if key in LOCATION_KEYS or override in (own.get("overrides") or []):
            continue
        asked, has = OmegaConf.select(config, key), OmegaConf.select(own, key)
        if asked != has or asked is None:
            raise UserError(
                f"resume={run.path} goes on with that run as it was started, so {key} cannot change here "
                f"(it is {has}). Leave it out, or start a new run from its weights with init_from={run.path}.",
                status=2,
            )


def prepare_to_resume(trainer: Trainer, module: ImageClassifier, run: Run) -> None:
    """Have the loggers drop what was written after the checkpoint that the run goes on from.

    Raises UserError where that checkpoint cannot be read or is another network's.
    """
    step = -1
    if run.last_checkpoint.exists():
        start_again = "Delete it, and the run starts again from its first epoch."
        try:
            checkpoint = read_checkpoint(run.last_checkpoint)
        except UserError as error:
            raise UserError(f"{error} {start_again}") from error
        if differing := differing_weights(module.state_dict(), checkpoint["state_dict"]):
            raise UserError(
                f"{run.last_checkpoint} is a checkpoint of another network than {run.config_file} describes: "
                f"{differing[0]} does not fit. {start_again}"
            )
        step = checkpoint["global_step"]
    for logger in trainer.loggers:
        if isinstance(logger, ResumableLogger):
            logger.resume_after(step)
