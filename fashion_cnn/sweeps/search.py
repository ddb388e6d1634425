"""Hyperparameter search with Optuna: the search space in Hydra's sweep syntax, the trials, and their pruning."""

import math
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

from fashion_cnn.analysis.comparison import lag_note
from fashion_cnn.analysis.verdict import training_command
from fashion_cnn.errors import Interrupted, Pruned, UserError, as_typed
from fashion_cnn.metrics.intervals import wilson_interval
from fashion_cnn.runs import STUDIES_FOLDER, STUDY_FILE, Run, check_links, create_folder, display_path, newest_weights
from fashion_cnn.runs.overrides import LATEST_WEIGHTS, affects_training, override_key, quote_override, unquote_override
from fashion_cnn.sweeps.study import (
    EPOCHS,
    RUN,
    TRIAL_HEADER,
    best_trial,
    check_trials,
    count_start,
    current_trials,
    format_params,
    format_trial,
    open_study,
    run_trials,
    study_errors_reported,
    write_results,
)
from fashion_cnn.terminal import print_text, progress_bar
from fashion_cnn.training.callbacks import EpochLog, find_callback
from fashion_cnn.training.session import check_one_device, quieten_lightning

# Study attribute: the run whose weights its trials start from.
_WEIGHTS = "init_from"
# Options of Optuna's pruners that are numbers of steps.
_STEP_OPTIONS = ("n_warmup_steps", "min_resource", "max_resource")


def search(config: DictConfig, swept: Sequence[str], train: Callable[..., dict[str, Any]]) -> optuna.Study:
    """Run the trials of a study; see `fashion_cnn.tune.tune`.

    Args:
        config: a config of `conf/tune.yaml`.
        swept: overrides that leave a value open.
        train: trains one trial, as `fashion_cnn.train.train` does.

    Returns:
        The study.

    Raises:
        UserError: invalid settings, or settings that differ from those of the existing study.
        Interrupted: the search was stopped.
    """
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _check_settings(config)
    name = config.tune.study or config.name
    fixed = _fixed_overrides(config.overrides)
    started = {"flags": config.flags, "working_dir": config.working_dir}
    typed = [*config.flags, *map(unquote_override, HydraConfig.get().overrides.task), *swept]
    space = search_space(_chosen_params(fixed, swept), swept)
    example = {key: _example_value(distribution) for key, distribution in space.items()}
    _check_hardware(_trial_config(name, fixed, example, started))
    folder = (Path(config.runs_dir) / STUDIES_FOLDER / name).absolute()
    check_links(folder)
    create_folder(folder, "runs_dir")
    study = _open_study(config, name, fixed, space, folder)
    fixed = _resolve_latest_weights(fixed, study, Path(config.runs_dir))
    # Makes a search reproducible, while a process that joins it draws other trials.
    seed = config.seed + len(study.trials) + count_start(study, folder)
    study.sampler = instantiate(config.tune.sampler, seed=seed % 2**32)
    done = sum(trial.state != TrialState.FAIL for trial in current_trials(study))
    print(
        f"Study {name}: {done} of {config.tune.trials} trials exist; {display_path(folder)}\n"
        f"Searching {', '.join(space)}",
        flush=True,
    )

    def train_trial(trial: optuna.Trial, directory: Path) -> float:
        # The storage may hold parameters that are not in the search space.
        searched = {key: trial.params[key] for key in space}
        trial_config = _trial_config(name, fixed, searched, started)
        with progress_bar(f"trial {trial.number}", transient=True) as progress:
            callback = PruneTrial(trial, progress)
            return float(train(trial_config, directory=directory, callbacks=[callback], quiet=True)["val/accuracy"])

    def print_trial(trial: FrozenTrial) -> None:
        print(format_trial(trial, best_trial(study)), flush=True)

    print(TRIAL_HEADER, flush=True)
    try:
        with study_errors_reported(name, optuna.exceptions.StorageInternalError):
            run_trials(study, space, config.tune.trials, folder, train_trial, print_trial)
    except KeyboardInterrupt as stop:
        command = shlex.join(["python", "-m", "fashion_cnn.tune", *typed])
        status = stop.status if isinstance(stop, Interrupted) else 130
        raise Interrupted(f"Stopped. To continue, run the same command again:\n  {command}", status) from None
    except UserError:
        write_results(study, folder)
        raise
    write_results(study, folder)
    # The name in the trials' configs is that of the study.
    typed_folder = [override for override in config.overrides if override_key(override) == "runs_dir"]
    _print_results(study, space, folder, [*fixed, *typed_folder], config.flags)
    return study


def _check_settings(config: DictConfig) -> None:
    if config.tune.trials < 1:
        raise UserError(f"tune.trials={config.tune.trials} is not possible: give 1 or more.", status=2)
    for key in ("val_size", "val_share"):
        # An image folder may have a validation set of its own.
        if config.data.get(key) == 0 and not (Path(config.data.root or "") / "val").is_dir():
            raise UserError(
                f"data.{key}=0 leaves no validation set: a search needs one to compare its trials.", status=2
            )
    for key in _STEP_OPTIONS:
        if isinstance(steps := config.tune.pruner.get(key), int) and not 0 <= steps <= 100:
            raise UserError(f"tune.pruner.{key}={steps} is not a percent of the schedule: give 0 to 100.", status=2)


def _fixed_overrides(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that all trials have."""
    # Each trial needs the location of the data, although it does not identify the study. No trial reads the test set.
    return [
        override
        for override in overrides
        if (affects_training(override) and override_key(override) != "test") or override_key(override) == "data.root"
    ]


def _chosen_params(fixed: Iterable[str], swept: Sequence[str]) -> dict[str, Any]:
    """Return the search space of the file in conf/sweep, without the keys that overrides fix."""
    # Values left open on the command line replace the default search space.
    is_default = all(override_key(override) != "sweep" for override in HydraConfig.get().overrides.task)
    if swept and is_default:
        return {}
    # Seeds are repetitions in a sweep, not a setting to search.
    fixed_keys = {"seed", *map(override_key, fixed)}
    params = HydraConfig.get().sweeper.params or {}
    return {key: values for key, values in params.items() if key not in fixed_keys}


def _open_study(
    config: DictConfig, name: str, fixed: Iterable[str], space: Mapping[str, BaseDistribution], folder: Path
) -> optuna.Study:
    storage = config.tune.storage or f"sqlite:///{folder / STUDY_FILE}"
    settings = {
        "fixed": sorted(filter(affects_training, fixed)),
        "searched": {key: str(space[key]) for key in sorted(space)},
    }
    study = open_study(storage, name, settings, instantiate(config.tune.pruner), folder)
    check_trials(study, space)
    return study


def _print_results(
    study: optuna.Study, space: Iterable[str], folder: Path, overrides: Sequence[str], flags: Sequence[str]
) -> None:
    """Print the best trial, and the command that trains with its settings in addition to the overrides."""
    trials = current_trials(study)
    states = Counter("failed" if trial.state == TrialState.FAIL else trial.state.name.lower() for trial in trials)
    best = best_trial(study)
    if best is None:
        raise UserError(f"none of the {len(trials)} trials finished: see {display_path(folder / 'trials.csv')}.")
    # The storage may hold parameters that are not in the search space.
    params = {key: value for key, value in best.params.items() if key in space}
    best_overrides = [f"{key}={value}" for key, value in params.items()]
    command = training_command({"overrides": [*overrides, *best_overrides], "flags": flags})
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    results = {trial.number: _results(trial, folder) for trial in trials if trial.state == TrialState.COMPLETE}
    print(
        f"\n{len(trials)} {'trial' if len(trials) == 1 else 'trials'}: {counts}\n"
        f"Best: trial {best.number}, validation {best.value:.2%}: {format_params(params)}"
    )
    others = [trial.value for trial in trials if trial.number in results and trial is not best]
    if images := results[best.number].get("val_images"):
        print_text(_describe_best(best.value or 0.0, images, [value for value in others if value is not None]))
    if note := lag_note(sum("evaluation_lag" in values for values in results.values()), len(results)):
        print_text(note)
    print(
        f"Trials and plots: {display_path(folder)}\n"
        f"To train with these settings and evaluate on the test set:\n  {as_typed(command)}"
    )


def _results(trial: FrozenTrial, folder: Path) -> dict[str, Any]:
    return Run(folder / Path(trial.user_attrs.get(RUN) or "").name.strip(".")).results()


def _describe_best(accuracy: float, images: int, others: Sequence[float]) -> str:
    """Describe the 95% interval of the best accuracy, and how many other finished trials lie in it."""
    interval = wilson_interval(accuracy, images)
    within = sum(value >= interval.low for value in others)
    return (
        f"Its 95% interval with {images:,} validation images is {interval.low:.2%} to {interval.high:.2%}, in which "
        f"{within} of the {len(others)} other complete trials lie."
    )


def _trial_config(name: str, fixed: Sequence[str], params: Mapping[str, Any], started: Mapping[str, Any]) -> DictConfig:
    """Compose the config of one trial, with the keys `started` on how the search was started."""
    loader = GlobalHydra.instance().config_loader()
    overrides = [*fixed, *(f"{key}={value}" for key, value in params.items())]
    task = [*map(quote_override, overrides), "test=false"]
    config = loader.load_configuration("train", task, RunMode.RUN, from_shell=False)
    with open_dict(config):
        del config["hydra"], config["trust"]
        config.name = name
        config.overrides = overrides
        config.update(started)
        # A trial prints one line at its end.
        config.callbacks.lines = config.callbacks.bar = None
    return config


def _check_hardware(config: DictConfig) -> None:
    """Raise UserError if a trial would use several devices, or Lightning's error if a device does not exist."""
    quieten_lightning()
    disabled = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = instantiate(config.trainer, precision="32-true", **disabled, _convert_="all")
    check_one_device(trainer, "trial of a search")


def _resolve_latest_weights(fixed: Sequence[str], study: optuna.Study, runs_dir: Path) -> list[str]:
    """Replace `init_from=latest` by the run that was the newest at the start of the study.

    Otherwise each trial would start from the weights of the trial before it. Raises UserError without a finished run.
    """
    if LATEST_WEIGHTS not in fixed:
        return [*fixed]
    if _WEIGHTS not in study.user_attrs:
        study.set_user_attr(_WEIGHTS, newest_weights(runs_dir))
    resolved = f"init_from={study.user_attrs[_WEIGHTS]}"
    return [resolved if override == LATEST_WEIGHTS else override for override in fixed]


def _example_value(distribution: Any) -> Any:
    choices = getattr(distribution, "choices", None)
    return choices[0] if choices else distribution.low


def search_space(params: Mapping[str, Any], swept: Iterable[str]) -> dict[str, BaseDistribution]:
    """Translate a search space from Hydra's sweep syntax to distributions of Optuna.

    A list or `choice(a,b)` is a categorical distribution, `interval(a,b)` a uniform one of numbers,
    `int(interval(a,b))` of integers, `tag(log,interval(a,b))` a log-uniform one; `range(a,b,step)` has steps.

    Args:
        params: `key: sweep` pairs, as in a file of conf/sweep.
        swept: overrides on the command line, which replace those of the same key.

    Returns:
        The distribution of each key.

    Raises:
        UserError: an empty search space, or a value that is no sweep.
    """
    parsed = OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in params.items()), *swept])
    space = {override.get_key_element(): _distribution(override) for override in parsed}
    if not space:
        raise UserError(
            "the search space is empty: leave a value open, such as 'optimizer.lr=tag(log,interval(1e-3,1e-1))', "
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
            # Hydra's ranges exclude their end, as Python's do.
            return IntDistribution(value.start, math.ceil(value.stop or 0) - 1, step=value.step)
        if override.is_discrete_sweep():
            return CategoricalDistribution([*override.sweep_string_iterator()])
    except ValueError as error:
        raise UserError(f"{override.input_line} is not a valid range: {error}", status=2) from error
    raise UserError(
        f"{override.input_line} leaves no value open: give a list, choice(a,b), interval(a,b) or range(a,b,step).",
        status=2,
    )


class PruneTrial(Callback):
    """Report the validation accuracy to the study, and raise Pruned when its pruner stops the trial.

    The learning rate falls over each trial's own length. Steps of the study are therefore percents of the schedule, not
    epochs, and trials of any length are compared at equal percents: between two validation passes the accuracy is
    interpolated.

    Args:
        trial: the trial.
        progress: called with the number of finished epochs and the number of all epochs.
    """

    def __init__(
        self, trial: optuna.Trial, progress: Callable[[int, int], None] = lambda finished, total: None
    ) -> None:
        self.trial = trial
        self.progress = progress
        # A trial that continues a killed trial has the values of that trial.
        self._reported = dict(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the accuracy up to this epoch; raise Pruned if the pruner stops the trial."""
        accuracy = find_callback(trainer, EpochLog).metrics.get("val/accuracy")
        epoch = trainer.current_epoch + 1
        self.progress(epoch, trainer.max_epochs or epoch)
        if accuracy is None:
            return
        self.trial.set_user_attr(EPOCHS, epoch)
        percent = 100 * trainer.global_step // int(trainer.estimated_stepping_batches)
        prune = False
        for step, value in self._interpolate(percent, accuracy):
            self.trial.report(value, step)
            prune = prune or self.trial.should_prune()
            self._reported[step] = value
        # At the end of the schedule pruning would save no time.
        if prune and percent < 100 and epoch != trainer.max_epochs:
            raise Pruned(f"pruned after epoch {epoch}, {percent}% of its schedule: validation {accuracy:.2%}")

    def _interpolate(self, percent: int, accuracy: float) -> list[tuple[int, float]]:
        """List the percents after the last report with their accuracies, up to `percent` with `accuracy`."""
        if not self._reported:
            return [(percent, accuracy)]
        last = max(self._reported)
        slope = (accuracy - self._reported[last]) / max(percent - last, 1)
        return [(step, accuracy - slope * (percent - step)) for step in range(last + 1, percent + 1)]
