"""What a study came to: its best trial, a table of all, and the plots."""

import csv
import io
from pathlib import Path

import optuna
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from fashion_cnn.analysis.figure_file import save_figure
from fashion_cnn.runs import write_whole
from fashion_cnn.tuning.study import ERROR, GOES_ON_WITH, counted

# For an importance of the settings.
_FEWEST_TRIALS = 4


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
    write_whole(folder / "trials.csv", as_csv(study))
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
