"""The Optuna study of a search: persistent trials, each of them an ordinary run, with a table and plots."""

import gc
import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from fashion_cnn.errors import Pruned, UserError, printable
from fashion_cnn.plots.comparison import Trial, plot_search
from fashion_cnn.plots.style import save_figure
from fashion_cnn.runs import Run, format_csv, write_atomically
from fashion_cnn.runs.files import is_locked, lock_file
from fashion_cnn.runs.overrides import round_value, short_names

# Trial attributes: the run directory, the number of the trial that it continues, the error of a failed trial, and the
# number of epochs that it was trained for.
RUN, CONTINUES, ERROR, EPOCHS = "run", "goes on with", "error", "epochs"
# Study attribute: the unit of the steps at which its trials report. Studies of older versions lack it and use epochs.
_STEP_UNIT = "step unit"
_PERCENT = "percent of the schedule"
# Study attribute: the number of processes that have worked on it.
_STARTS = "starts"
# Heading of the lines of `format_trial`.
TRIAL_HEADER = "trial  val %  best (trial)  settings"
# Number of consecutive trials with the same error that ends a search.
_MAX_EQUAL_FAILURES = 3
# Locks of processes on another machine are not visible here. Such a process needs at most this long to lock the run of
# a trial that it has drawn, and to report the result of a run that has ended.
_HANDOVER_SECONDS = 60
# Beginning of the statements in the schema of a study's SQLite file, and the words that may stand before a parenthesis
# in them. Any other word there may be a function, which SQLite calls, as in generated columns, when Optuna reads or
# writes a row.
_PLAIN_STATEMENT = re.compile(r"CREATE (UNIQUE )?(TABLE|INDEX) ", re.IGNORECASE)
_BEFORE_PARENTHESIS = re.compile(r"""([^\s(),"'`\[\]]+)["'`\]]?\s*\(""")
_PLAIN_WORD = re.compile(
    r"(stud(y|ies)|trials?)(_[a-z_]+)?|version_info|_?alembic_\w+|varchar|char|float|datetime|key|unique|check|in",
    re.IGNORECASE,
)
_NOT_PLAIN = re.compile(r"--|/\*|\bselect\b", re.IGNORECASE)
# Number of finished trials needed for a plot of parameter importances.
_MIN_TRIALS_FOR_IMPORTANCE = 4


def open_study(
    storage: str,
    name: str,
    settings: Mapping[str, Any],
    pruner: optuna.pruners.BasePruner,
    folder: Path,
) -> optuna.Study:
    """Open the study of this name, or create it.

    Args:
        storage: storage URL of Optuna.
        name: name of the study.
        settings: `fixed`, a list of overrides, and `searched`, the distribution of each key.
        pruner: decides when to stop a trial.
        folder: existing directory of the study.

    Raises:
        UserError: the study exists with other settings or reports epochs, or the storage is unavailable.
    """
    # Optuna creates the tables of a new database without locking them: other processes of this machine wait.
    with _locked(folder):
        with study_errors_reported(name):
            _check_schema(storage)
        study = _create_or_load(storage, name, pruner)
        with study_errors_reported(name):
            _check_step_unit(study, name)
            stored = study.user_attrs.get("settings")
            if stored is None:
                study.set_user_attr("settings", dict(settings))
    if stored not in (None, dict(settings)):
        with study_errors_reported(name):
            difference = printable(_describe_difference(stored, settings))
        raise UserError(
            f"the study {name} has other settings ({difference}): "
            "repeat its command to continue it, or start a new one with tune.study=NAME.",
            status=2,
        )
    return study


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a study's directory."""
    with lock_file(folder / ".lock", "the study is locked", instead="choose another runs_dir=DIR"):
        yield


def count_start(study: optuna.Study, folder: Path) -> int:
    """Count a process that works on a study; return the number of processes that have started before it."""
    with _locked(folder), study_errors_reported(study.study_name):
        earlier = int(study.user_attrs.get(_STARTS, 0))
        study.set_user_attr(_STARTS, earlier + 1)
    return earlier


@contextmanager
def study_errors_reported(name: str, errors: type[Exception] = Exception) -> Iterator[None]:
    """Raise UserError for an error of reading or writing a study, whose database may come from someone else.

    Args:
        name: name of the study.
        errors: the class of these errors.
    """
    try:
        yield
    except UserError:
        raise
    except errors as error:
        reason = printable((str(error.__cause__ or error) or type(error).__name__).splitlines()[0])
        raise UserError(
            f"the study {name} cannot be read or written ({reason}): restore it from a copy, or start a new one with "
            "tune.study=NAME."
        ) from error


def check_trials(study: optuna.Study, space: Mapping[str, BaseDistribution]) -> None:
    """Raise UserError if the study holds values that its search space does not have, or cannot be read."""
    with study_errors_reported(study.study_name):
        for trial in study.get_trials(deepcopy=False):
            if not isinstance(trial.user_attrs.get(RUN, ""), str):
                raise TypeError(f"the run of trial {trial.number} is no text")
            queued = trial.system_attrs.get("fixed_params", {})
            for key, value in [*trial.params.items(), *((key, queued[key]) for key in space if key in queued)]:
                if key not in space or not space[key]._contains(space[key].to_internal_repr(value)):
                    raise ValueError(f"trial {trial.number} has {key}={value}, which is not searched")


def _check_schema(storage: str) -> None:
    """Raise ValueError if an SQLite file holds more than plain tables: SQLite would run code of whoever made it."""
    try:
        url = make_url(storage)
    except ArgumentError:  # Optuna reports it.
        return
    file = url.database or ""
    if url.get_backend_name() != "sqlite" or not Path(file).is_file():
        return
    # Not read-only, which fails if a killed process left a journal.
    with closing(sqlite3.connect(f"{Path(file).absolute().as_uri()}?mode=rw", uri=True)) as database:
        for name, statement in database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"):
            words = _BEFORE_PARENTHESIS.findall(str(statement))
            is_plain = _PLAIN_STATEMENT.match(str(statement)) and not _NOT_PLAIN.search(statement)
            if not is_plain or not all(map(_PLAIN_WORD.fullmatch, words)):
                raise ValueError(f"its database defines {str(name)[:50]} in a way that Optuna does not")


def _create_or_load(storage: str, name: str, pruner: optuna.pruners.BasePruner, attempts: int = 3) -> optuna.Study:
    try:
        return optuna.create_study(
            storage=storage, study_name=name, pruner=pruner, direction="maximize", load_if_exists=True
        )
    except Exception as error:  # Each database has its own error classes.
        if attempts == 1:
            raise UserError(f"the study cannot be stored in {storage}: {error}".splitlines()[0]) from error
    # The lock does not cover other machines, which may be creating the same study.
    time.sleep(random.uniform(0.2, 0.8))
    return _create_or_load(storage, name, pruner, attempts - 1)


def _check_step_unit(study: optuna.Study, name: str) -> None:
    if _STEP_UNIT in study.user_attrs:
        return
    if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        raise UserError(
            f"the study {name} is of an older version, which compared its trials by epoch, not by percent of their "
            "schedule: start a new one with tune.study=NAME.",
            status=2,
        )
    study.set_user_attr(_STEP_UNIT, _PERCENT)


def _describe_difference(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    old, new = _by_key(stored), _by_key(settings)
    return "; ".join(
        f"{key}: {old.get(key, 'default')} there, {new.get(key, 'default')} here"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    )


def _by_key(settings: Mapping[str, Any]) -> dict[str, str]:
    """Describe the setting of each key: its value, or the distribution in which it is searched."""
    pairs = (override.partition("=") for override in settings.get("fixed", ()))
    searched = settings.get("searched", {}).items()
    return {key: value or "given" for key, _, value in pairs} | {key: f"searched in {how}" for key, how in searched}


def run_trials(
    study: optuna.Study,
    space: dict[str, BaseDistribution],
    trials: int,
    folder: Path,
    train: Callable[[optuna.Trial, Path], float],
    report: Callable[[FrozenTrial], None],
) -> None:
    """Run trials until the study has a number of them; other processes may work on the same study.

    A failed trial is stored with its error. It counts until the next start of the search, before which the user may
    have corrected the cause. A trial whose process was killed is continued from its last epoch.

    Args:
        study: the study.
        space: the distribution of each key.
        trials: total number of trials, whichever process ran them.
        folder: directory for the runs of the trials.
        train: trains a trial in a directory and returns its validation accuracy.
        report: called with each trial that has ended.

    Raises:
        UserError: three trials in a row failed with the same error.
    """
    failed_before = {trial.number for trial in current_trials(study) if trial.state == TrialState.FAIL}
    errors: list[str] = []
    while True:
        with ExitStack() as trial_lock:
            with _locked(folder):
                requeue_killed_trials(study, folder)
                known = [trial for trial in current_trials(study) if trial.number not in failed_before]
                waiting = any(trial.state == TrialState.WAITING for trial in known)
                if len(known) >= trials and not waiting:
                    return
                trial = study.ask(space)
                trial_lock.enter_context(lock_file(_trial_lock(trial, folder), "the trial is run by another process"))
            path = folder / _directory_name(trial)
            trial.set_user_attr(RUN, str(path))
            try:
                study.tell(trial, train(trial, path))
                errors.clear()
            except Pruned:
                study.tell(trial, state=TrialState.PRUNED)
                errors.clear()
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}".splitlines()[0])
                trial.set_user_attr(ERROR, errors[-1])
                study.tell(trial, state=TrialState.FAIL)
            finally:
                # Trainer, loggers and callbacks refer to each other: free their tensors before the next trial.
                gc.collect()
        report(study.trials[trial.number])
        if len(errors) >= _MAX_EQUAL_FAILURES and len({*errors[-_MAX_EQUAL_FAILURES:]}) == 1:
            raise UserError(
                f"{_MAX_EQUAL_FAILURES} trials in a row failed with the same error ({errors[-1]}). "
                "Correct its cause, and run the same command again."
            )


def current_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials without those that a later trial continues."""
    trials = study.get_trials(deepcopy=False)
    superseded = {trial.user_attrs.get(CONTINUES) for trial in trials}
    return [trial for trial in trials if trial.number not in superseded]


def _directory_name(trial: FrozenTrial | optuna.Trial) -> str:
    """Name of a trial's directory in the folder of its study, also if the storage names another folder."""
    return Path(trial.user_attrs.get(RUN) or "").name.strip(".") or f"trial-{trial.number:04}"


def _trial_lock(trial: FrozenTrial | optuna.Trial, folder: Path) -> Path:
    """File that a process locks from drawing the trial until it has reported the result to the study."""
    return folder / ".locks" / _directory_name(trial)


def requeue_killed_trials(study: optuna.Study, folder: Path) -> None:
    """Put trials whose process was killed back in the queue, to continue from their last epoch.

    Args:
        study: the study.
        folder: its directory.
    """
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if is_locked(_trial_lock(trial, folder)) or _is_alive(trial):
            continue
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except ValueError:  # Another process has requeued it.
            continue
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**trial.user_attrs, CONTINUES: trial.number},
                intermediate_values=trial.intermediate_values,
            )
        )


def _is_alive(trial: FrozenTrial) -> bool:
    """Return whether a process runs the trial, or may be about to start its run or to report its end."""
    run = Run(Path(trial.user_attrs[RUN])) if RUN in trial.user_attrs else None
    if run is not None and run.state == "running":
        return True
    started = (trial.datetime_start or datetime.now()).timestamp()
    if run is not None and run.results_file.exists():
        started = run.results_file.stat().st_mtime
    elif run is not None and run.config_file.exists():
        return False
    return time.time() - started < _HANDOVER_SECONDS


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the finished trial with the highest validation accuracy; None if no trial has finished."""
    done = [trial for trial in current_trials(study) if trial.state == TrialState.COMPLETE and trial.value is not None]
    return max(done, key=lambda trial: trial.value or 0.0, default=None)


def format_trial(trial: FrozenTrial, best: FrozenTrial | None) -> str:
    """Format a trial that has ended as a line below TRIAL_HEADER.

    Args:
        trial: the trial.
        best: the best trial so far; None if no trial has finished.
    """
    last = trial.intermediate_values.get(trial.last_step or 0)
    accuracy = trial.value if trial.state == TrialState.COMPLETE else last
    cells = [
        f"{trial.number:>5}",
        "    -" if accuracy is None else f"{accuracy * 100:5.2f}",
        f"{f'{best.value * 100:5.2f} ({best.number})' if best and best.value is not None else '-':<12}",
        format_params(trial.params, shorten=True),
    ]
    if trial.state == TrialState.PRUNED:
        cells.append(f"pruned after epoch {trial.user_attrs.get(EPOCHS)}, {trial.last_step}% of its schedule")
    elif trial.state == TrialState.FAIL:
        cells.append(printable(f"failed: {trial.user_attrs.get(ERROR, '')}"))
    return "  ".join(cells)


def format_params(params: Mapping[str, Any], *, shorten: bool = False) -> str:
    """Format the values of a trial.

    Args:
        params: the values by key.
        shorten: shorten the keys, see `short_names`.
    """
    names = short_names(params) if shorten else {key: key for key in params}
    return " ".join(f"{names[key]}={round_value(value)}" for key, value in params.items())


def write_results(study: optuna.Study, folder: Path) -> None:
    """Write trials.csv and, if there are enough trials, history.png, curves.png and importance.png."""
    write_atomically(folder / "trials.csv", as_csv(study))
    trials = [
        Trial(
            trial.number,
            trial.state == TrialState.COMPLETE,
            trial.value if trial.value is not None else trial.intermediate_values[trial.last_step or 0],
            dict(sorted(trial.intermediate_values.items())),
        )
        for trial in current_trials(study)
        if trial.state == TrialState.COMPLETE or (trial.state == TrialState.PRUNED and trial.intermediate_values)
    ]
    accuracies = [trial.accuracy for trial in trials if trial.finished]
    importances = {}
    if len(accuracies) >= _MIN_TRIALS_FOR_IMPORTANCE and len({*accuracies}) > 1:
        importances = optuna.importance.get_param_importances(study)
        names = short_names(importances)
        importances = {names[key]: value for key, value in importances.items()}
    plots = plot_search(trials, importances, title=f"search {study.study_name}") if accuracies else {}
    for name, plot in plots.items():
        save_figure(plot, folder / f"{name}.png")


def as_csv(study: optuna.Study) -> str:
    """Format the trials as CSV: number, state, validation accuracy, epochs, settings, error and run of each."""
    trials = current_trials(study)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    rows: list[list[Any]] = [["trial", "state", "val/accuracy", "epochs", *keys, "goes on with", "error", "run"]]
    for trial in trials:
        last = trial.intermediate_values.get(trial.last_step or 0)
        attributes = trial.user_attrs
        rows.append(
            [
                trial.number,
                trial.state.name.lower(),
                trial.value if trial.state == TrialState.COMPLETE else last,
                attributes.get(EPOCHS),
                *(trial.params.get(key) for key in keys),
                attributes.get(CONTINUES),
                attributes.get(ERROR),
                attributes.get("run"),
            ]
        )
    return format_csv(rows)
