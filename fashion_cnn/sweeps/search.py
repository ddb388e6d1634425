"""A hyper-parameter search: its space in the words of Hydra's sweeps, its trials, and their pruning."""

import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, open_dict
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from fashion_cnn.errors import Interrupted, Pruned, UserError
from fashion_cnn.runs import STUDY_FILE, display_path, newest_weights
from fashion_cnn.runs.overrides import LATEST_WEIGHTS, affects_training, override_key, quote_override, unquote_override
from fashion_cnn.sweeps.study import best_of, counted, describe, open_study, run_trials, write_outcome
from fashion_cnn.training.callbacks import EpochLog, find_callback
from fashion_cnn.training.session import check_one_device, quieten_lightning

# Name of a study's attribute: the run that its trials start from.
WEIGHTS = "init_from"


def search(config: DictConfig, swept: Sequence[str], train: Callable[..., dict[str, Any]]) -> optuna.Study:
    """Run the trials of a study; see `fashion_cnn.tune.tune`.

    train: trains one trial, as `fashion_cnn.train.train` does.
    """
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if config.tune.trials < 1:
        raise UserError(f"tune.trials={config.tune.trials} is not possible: give 1 or more.", status=2)
    for key in ("val_size", "val_share"):
        # A folder may hold its own.
        if config.data.get(key) == 0 and not (Path(config.data.root or "") / "val").is_dir():
            raise UserError(f"data.{key}=0 leaves nothing to choose by: a search needs validation images.", status=2)
    name = config.tune.study or config.name
    # Where the data lie makes no other study, and each trial has to be told. No trial reads the test set.
    fixed = [
        one
        for one in config.overrides
        if (affects_training(one) and override_key(one) != "test") or override_key(one) == "data.root"
    ]
    # A sweep repeats its settings with several seeds, which is no setting to choose.
    said = {"seed", *map(override_key, fixed)}
    typed = HydraConfig.get().overrides.task
    # What is left open by name is not to be joined by what a default leaves open.
    is_default = all(override_key(override) != "sweep" for override in typed)
    params = {} if swept and is_default else HydraConfig.get().sweeper.params or {}
    space = search_space({key: words for key, words in params.items() if key not in said}, swept)
    example = _config_of(name, fixed, {key: _any_of(distribution) for key, distribution in space.items()})
    _check_hardware(example)
    folder = (Path(config.runs_dir) / "tune" / name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    storage = config.tune.storage or f"sqlite:///{folder / STUDY_FILE}"
    settings = {
        "fixed": sorted(filter(affects_training, fixed)),
        "searched": {key: str(space[key]) for key in sorted(space)},
    }
    study = open_study(storage, name, settings, instantiate(config.tune.pruner), folder)
    fixed = _with_weights_named(fixed, study, Path(config.runs_dir))
    # So that a search is repeatable, and a process that joins draws trials of its own.
    study.sampler = instantiate(config.tune.sampler, seed=config.seed + len(study.trials))
    there = sum(trial.state != TrialState.FAIL for trial in counted(study))
    print(
        f"Study {name}: {there} of {config.tune.trials} trials are there; {display_path(folder)}\n"
        f"Searching {', '.join(space)}",
        flush=True,
    )

    def train_trial(trial: optuna.Trial, directory: Path) -> float:
        print(f"\ntrial {trial.number}: {_typed(trial.params)}", flush=True)
        composed = _config_of(name, fixed, trial.params)
        return float(train(composed, directory=directory, callbacks=[PruneTrial(trial)])["val/accuracy"])

    def tell(trial: FrozenTrial) -> None:
        best = best_of(study)
        so_far = f"; best so far: {best.value:.2%}, trial {best.number}" if best else ""
        print(f"trial {trial.number}: {describe(trial)}{so_far}", flush=True)

    try:
        run_trials(study, space, config.tune.trials, folder, train_trial, tell)
    except KeyboardInterrupt as stop:
        again = shlex.join(["python", "-m", "fashion_cnn.tune", *map(unquote_override, typed), *swept])
        status = stop.status if isinstance(stop, Interrupted) else 130
        raise Interrupted(f"Stopped. The same command goes on where it was:\n  {again}", status) from None
    except UserError:
        write_outcome(study, folder)
        raise
    write_outcome(study, folder)
    _print_outcome(study, folder, fixed)
    return study


def _print_outcome(study: optuna.Study, folder: Path, fixed: Sequence[str]) -> None:
    trials = counted(study)
    ended = Counter(trial.state.name.lower() for trial in trials)
    best = best_of(study)
    if best is None:
        raise UserError(f"None of the {len(trials)} trials came to its end: see {display_path(folder / 'trials.csv')}.")
    typed = [*fixed, *(f"{key}={value}" for key, value in best.params.items())]
    command = shlex.join(["python", "-m", "fashion_cnn.train", *typed])
    print(
        f"\n{len(trials)} trials: {', '.join(f'{number} {state}' for state, number in ended.items())}\n"
        f"Best: trial {best.number}, validation {best.value:.2%}: {_typed(best.params)}\n"
        f"Trials and plots: {display_path(folder)}\n"
        f"Train with its settings, and measure on test:\n  {command}"
    )


def _config_of(name: str, fixed: Sequence[str], drawn: dict[str, Any]) -> DictConfig:
    """The config of one trial's training."""
    loader = GlobalHydra.instance().config_loader()
    overrides = [*fixed, *(f"{key}={value}" for key, value in drawn.items())]
    composed = [*map(quote_override, overrides), "test=false"]
    config = loader.load_configuration("train", composed, RunMode.RUN, from_shell=False)
    with open_dict(config):
        del config["hydra"]
        config.name = name
        config.overrides = overrides
    return config


def _check_hardware(config: DictConfig) -> None:
    """Raise UserError where a trial would take several devices, and what Lightning has for one that is not there."""
    quieten_lightning()
    only_asked = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = instantiate(config.trainer, precision="32-true", **only_asked, _convert_="all")
    check_one_device(trainer, "trial of a search")


def _with_weights_named(fixed: Sequence[str], study: optuna.Study, runs_dir: Path) -> list[str]:
    """The overrides, `init_from=latest` replaced by the run that was the newest when the study began.

    Else each trial would start from the one before it. Raises UserError where there is no finished run.
    """
    if LATEST_WEIGHTS not in fixed:
        return [*fixed]
    if WEIGHTS not in study.user_attrs:
        study.set_user_attr(WEIGHTS, newest_weights(runs_dir))
    named = f"init_from={study.user_attrs[WEIGHTS]}"
    return [named if override == LATEST_WEIGHTS else override for override in fixed]


def _any_of(distribution: Any) -> Any:
    choices = getattr(distribution, "choices", None)
    return choices[0] if choices else distribution.low


def _typed(params: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()
    )


def search_space(params: Mapping[str, Any], swept: Iterable[str]) -> dict[str, BaseDistribution]:
    """What Optuna draws each key from.

    params: `key: sweep`, as a file of conf/sweep lists them. swept: typed overrides, which replace those.
    A list or `choice(a,b)` is a choice; `interval(a,b)` a range of numbers, `int(interval(a,b))` of whole ones, and
    `tag(log,interval(a,b))` of any logarithm alike; `range(a,b,step)` has steps. Raises UserError for anything else.
    """
    parsed = OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in params.items()), *swept])
    space = {override.get_key_element(): _distribution(override) for override in parsed}
    if not space:
        raise UserError(
            "There is nothing to search: leave a setting open, such as 'optimizer.lr=tag(log,interval(1e-3,1e-1))', "
            "or choose a file of conf/sweep that varies more than the seed.",
            status=2,
        )
    return space


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            log = "log" in value.tags
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=log)
            assert value.start is not None
            assert value.end is not None
            return FloatDistribution(value.start, value.end, log=log)
        if isinstance(value, RangeSweep) and isinstance(value.step, int) and isinstance(value.start, int):
            # Hydra leaves the end out, as Python does.
            return IntDistribution(value.start, int(value.stop or 0) - 1, step=value.step)
        if override.is_discrete_sweep():
            return CategoricalDistribution([*override.sweep_string_iterator()])
    except ValueError as error:
        raise UserError(f"{override.input_line} is no range to search: {error}", status=2) from error
    raise UserError(
        f"{override.input_line} leaves nothing open: give a list, choice(a,b), interval(a,b) or range(a,b,step).",
        status=2,
    )


class PruneTrial(Callback):
    """Tells the study the validation accuracy of each epoch, and ends the training where its pruner says so.

    Raises Pruned.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        accuracy = find_callback(trainer, EpochLog).metrics.get("val/accuracy")
        epoch = trainer.current_epoch + 1
        if accuracy is None:
            return
        self.trial.report(accuracy, epoch)
        # After its last epoch there is nothing left to spare.
        if epoch != trainer.max_epochs and self.trial.should_prune():
            raise Pruned(f"pruned after epoch {epoch}: validation {accuracy:.2%}")
