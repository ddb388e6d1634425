"""The study of a search: trials that outlive its processes, each an ordinary run, and the table and plots of them."""

import csv
import gc
import io
import random
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from fashion_cnn.errors import Pruned, UserError
from fashion_cnn.plots.style import save_figure
from fashion_cnn.runs import Run, write_atomically

# Names of a trial's attributes.
RUN, GOES_ON_WITH, ERROR = "run", "goes on with", "error"
# As many in a row end a search.
_FAILURES_ALIKE = 3
# A worker needs less from drawing a trial to holding its run, and from the run's end to telling the study.
_SECONDS_BETWEEN = 60
# Fewest finished trials for a plot of the importance of the settings.
_FEWEST_TRIALS = 4


def open_study(
    storage: str,
    name: str,
    settings: Mapping[str, Any],
    pruner: optuna.pruners.BasePruner,
    folder: Path,
) -> optuna.Study:
    """The study of this name, made where there is none.

    settings: what is fixed and what is searched. folder: the study's own, which is there. Raises UserError where the
    study is there with others, or where the storage cannot be reached.
    """
    # Optuna creates the tables of a new database without locking them: other processes of this machine wait.
    with FileLock(folder / ".lock"):
        study = _create_or_load(storage, name, pruner)
        before = study.user_attrs.get("settings")
        if before is None:
            study.set_user_attr("settings", dict(settings))
    if before not in (None, dict(settings)):
        raise UserError(
            f"The study {name} searches with other settings ({_difference(before, settings)}): "
            "repeat its command to go on with it, or begin another with tune.study=NAME.",
            status=2,
        )
    return study


def _create_or_load(storage: str, name: str, pruner: optuna.pruners.BasePruner, attempts: int = 3) -> optuna.Study:
    try:
        return optuna.create_study(
            storage=storage, study_name=name, pruner=pruner, direction="maximize", load_if_exists=True
        )
    except Exception as error:  # Each database has errors of its own.
        if attempts == 1:
            raise UserError(f"The study cannot be kept in {storage}: {error}".splitlines()[0]) from error
    # Another machine may be making the same one, which no lock here keeps it from.
    time.sleep(random.uniform(0.2, 0.8))
    return _create_or_load(storage, name, pruner, attempts - 1)


def _difference(before: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    there, here = _by_key(before), _by_key(settings)
    return "; ".join(
        f"{key}: {there.get(key, 'as it stands')} there, {here.get(key, 'as it stands')} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    )


def _by_key(settings: Mapping[str, Any]) -> dict[str, str]:
    """What is said of each key: its value, or that it is searched, and how."""
    pairs = (override.partition("=") for override in settings.get("fixed", ()))
    searched = settings.get("searched", {}).items()
    return {key: value or "typed" for key, _, value in pairs} | {key: f"searched in {how}" for key, how in searched}


def run_trials(
    study: optuna.Study,
    space: dict[str, BaseDistribution],
    trials: int,
    folder: Path,
    train: Callable[[optuna.Trial, Path], float],
    told: Callable[[FrozenTrial], None],
) -> None:
    """Run trials until the study has so many, whoever ran them; other processes may do the same at once.

    train: trains a trial in a directory and returns its validation accuracy. told: called with each ended trial.
    A trial that fails is kept with its error, and counts until the next start, for which its cause may have been
    mended. One whose process was killed goes on where it was. Raises UserError where trials in a row fail alike.
    """
    failed_before = {trial.number for trial in counted(study) if trial.state == TrialState.FAIL}
    errors: list[str] = []
    while True:
        revive(study)
        known = [trial for trial in counted(study) if trial.number not in failed_before]
        waiting = any(trial.state == TrialState.WAITING for trial in known)
        if len(known) >= trials and not waiting:
            return
        trial = study.ask(space)
        path = Path(trial.user_attrs.get(RUN) or folder / f"trial-{trial.number:04}")
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
            # Trainer, loggers and callbacks refer to each other; their tensors are not to wait for the next trial.
            gc.collect()
        told(study.trials[trial.number])
        if len(errors) >= _FAILURES_ALIKE and len({*errors[-_FAILURES_ALIKE:]}) == 1:
            raise UserError(
                f"{_FAILURES_ALIKE} trials in a row failed with the same error ({errors[-1]}): the search ends here. "
                "Mend its cause, and type the same command again."
            )


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials, each once: without those that another goes on with."""
    trials = study.get_trials(deepcopy=False)
    superseded = {trial.user_attrs.get(GOES_ON_WITH) for trial in trials}
    return [trial for trial in trials if trial.number not in superseded]


def revive(study: optuna.Study) -> None:
    """Put trials whose process is gone back in the queue, to go on from their last epoch."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if _is_alive(trial):
            continue
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except ValueError:  # Another process was quicker.
            continue
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**trial.user_attrs, GOES_ON_WITH: trial.number},
                intermediate_values=trial.intermediate_values,
            )
        )


def _is_alive(trial: FrozenTrial) -> bool:
    """Whether a process holds its run, or has had no time yet to begin it, or to tell the study of its end."""
    run = Run(Path(trial.user_attrs[RUN])) if RUN in trial.user_attrs else None
    if run is not None and run.state == "running":
        return True
    started = (trial.datetime_start or datetime.now()).timestamp()
    if run is not None and run.results_file.exists():
        started = run.results_file.stat().st_mtime
    elif run is not None and run.config_file.exists():
        return False
    return time.time() - started < _SECONDS_BETWEEN


def best_of(study: optuna.Study) -> FrozenTrial | None:
    """The trained trial of the highest validation accuracy; None where none was trained to its end."""
    done = [trial for trial in counted(study) if trial.state == TrialState.COMPLETE and trial.value is not None]
    return max(done, key=lambda trial: trial.value or 0.0, default=None)


def describe(trial: FrozenTrial) -> str:
    """How it ended, in words."""
    if trial.state == TrialState.COMPLETE:
        return f"validation {trial.value:.2%}"
    if trial.state == TrialState.PRUNED and trial.last_step is not None:
        return f"pruned after epoch {trial.last_step}, validation {trial.intermediate_values[trial.last_step]:.2%}"
    return f"{trial.state.name.lower()} {trial.user_attrs.get(ERROR, '')}".strip()


def write_outcome(study: optuna.Study, folder: Path) -> None:
    """Write trials.csv and, as far as there are trials enough, history.png, curves.png and importance.png."""
    write_atomically(folder / "trials.csv", as_csv(study))
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as plots

    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    drawn = {"history": plots.plot_optimization_history, "curves": plots.plot_intermediate_values}
    if len(done) >= _FEWEST_TRIALS and len({trial.value for trial in done}) > 1:
        drawn["importance"] = plots.plot_param_importances
    for name, draw in drawn.items() if done else ():
        axes = draw(study)
        _name_axes(axes, name)
        figure = axes.get_figure(root=True)
        assert figure
        figure.set_size_inches(8, 5)
        figure.tight_layout()
        save_figure(figure, folder / f"{name}.png")
        plt.close(figure)


def _name_axes(axes: Axes, name: str) -> None:
    """In this project's words, and with no half trials and epochs."""
    legend = axes.get_legend()
    axes.set_title("", loc="left")
    if name == "importance":
        axes.set(
            title="What each setting explains", xlabel="share of the differences in validation accuracy", ylabel=""
        )
    else:
        title, xlabel = (
            ("A line for each trial", "epoch") if name == "curves" else ("The trials of the search", "trial")
        )
        axes.set(title=title, xlabel=xlabel, ylabel="validation accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if legend and name != "history":
        legend.remove()
    elif legend:
        for text, said in zip(legend.get_texts(), ("a trial", "the best so far"), strict=False):
            text.set_text(said)


def as_csv(study: optuna.Study) -> str:
    """A row a trial, each once: number, how it ended, validation accuracy, epochs told, settings, error, run."""
    trials = counted(study)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "val/accuracy", "epochs", *keys, "goes on with", "error", "run"])
    for trial in trials:
        last = trial.intermediate_values.get(trial.last_step or 0)
        attributes = trial.user_attrs
        writer.writerow(
            [
                trial.number,
                trial.state.name.lower(),
                trial.value if trial.state == TrialState.COMPLETE else last,
                trial.last_step,
                *(trial.params.get(key) for key in keys),
                attributes.get(GOES_ON_WITH),
                attributes.get(ERROR),
                attributes.get("run"),
            ]
        )
    return text.getvalue()
