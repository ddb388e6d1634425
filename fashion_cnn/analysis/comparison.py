"""Runs side by side: grouped by what differs between their settings, mean and spread over the seeds."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fashion_cnn.analysis.settings import Setting, checkpoint_settings, is_checkpoint_setting, is_setting, run_settings
from fashion_cnn.errors import UserError
from fashion_cnn.metrics.intervals import MeanStd
from fashion_cnn.runs import Run, list_runs

# By heading: the figure in results.json, what it is multiplied by, and the digits shown.
COLUMNS = {
    "train acc. %": ("train/accuracy", 100, 2),
    "val acc. %": ("val/accuracy", 100, 2),
    "test acc. %": ("test/accuracy", 100, 2),
    "gap, points": ("gap/accuracy", 100, 2),
    "train loss": ("train/loss", 1, 4),
    "val loss": ("val/loss", 1, 4),
    "gap in loss": ("gap/loss", 1, 4),
    "best epoch": ("best_epoch", 1, 1),
    "minutes": ("seconds", 1 / 60, 1),
}
# A model is a choice of many settings at once: what it is measured by.
SIZE = "parameters"


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in their seed alone; of several with one seed the newest.

    factors: what tells the group from the others, by name. results: of each run, as in results.json.
    """

    factors: dict[str, Setting]
    results: tuple[dict[str, Any], ...]

    def values(self, name: str) -> tuple[float, ...]:
        """The values of a metric in results.json over the runs; empty if a run lacks it."""
        if not all(isinstance(result.get(name), int | float) for result in self.results):
            return ()
        return tuple(float(result[name]) for result in self.results)

    def metric(self, name: str) -> MeanStd | None:
        """Mean and standard deviation of a metric over the runs; None if a run lacks it."""
        values = self.values(name)
        return MeanStd.of(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """groups: of the finished runs. factors: the names of what differs. unfinished: the others, damaged ones too."""

    groups: tuple[Group, ...]
    factors: tuple[str, ...]
    unfinished: tuple[Run, ...]


def find_runs(references: str | Sequence[str]) -> list[Run]:
    """All runs in a folder at any depth, those that a glob matches, or those of a list of both, each once.

    Raises UserError where one of them holds no run.
    """
    if not isinstance(references, str):
        return list({run.path.resolve(): run for reference in references for run in find_runs(reference)}.values())
    path = Path(references).expanduser()
    matched = [path] if path.exists() else sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    found = list({run.path.resolve(): run for folder in matched for run in list_runs(folder)}.values())
    if not found:
        raise UserError(f"{references} holds no run: give a folder of runs, a glob such as 'runs/small/*', or a list.")
    return found


def compare(runs: Iterable[Run]) -> Comparison:
    """Group the finished runs by their settings, the seed left out. Raises UserError where none is finished."""
    runs = list(runs)
    finished = [run for run in runs if run.state == "finished"]
    if not finished:
        states = ", ".join(f"{run.path} ({run.state})" for run in runs[:3])
        raise UserError(f"None of the {len(runs)} runs is finished, so there is nothing to compare: {states}.")
    distinct = _distinct(finished)
    # Where one setting alone is left, it is told apart from those that did not finish.
    told_apart = distinct if len(distinct) > 1 else _distinct([run for run in runs if run.state != "damaged"])
    factors = _factors([(values, _typed(members[0])) for values, members in told_apart])
    groups = [
        Group(
            factors=dict(zip(factors, (_value(name, values, members[0]) for name in factors), strict=True)),
            results=_one_for_each_seed(members),
        )
        for values, members in distinct
    ]
    groups.sort(key=lambda group: [_order(value) for value in group.factors.values()])
    return Comparison(tuple(groups), tuple(factors), tuple(run for run in runs if run not in finished))


def _distinct(runs: Iterable[Run]) -> list[tuple[dict[str, Setting], list[Run]]]:
    """The settings that there are, the seed left out, each with its runs."""
    grouped: dict[tuple[tuple[str, Setting], ...], list[Run]] = {}
    for run in runs:
        values = _settings_but_seed(run)
        grouped.setdefault(tuple(sorted(values.items(), key=lambda pair: pair[0])), []).append(run)
    return [(dict(values), members) for values, members in grouped.items()]


def _settings_but_seed(run: Run) -> dict[str, Setting]:
    """A run that began with another's weights is none from scratch, whichever run that was; so with its teachers."""
    config = run.config()
    chosen = run_settings(config) | checkpoint_settings(config)
    if "init_from" in chosen:
        chosen["init_from"] = "another run"
    if "distillation.teachers" in chosen:
        chosen["distillation.teachers"] = len(config.distillation.teachers)
    return {name: value for name, value in chosen.items() if name != "seed"}


def _one_for_each_seed(runs: Sequence[Run]) -> tuple[dict[str, Any], ...]:
    """A run that was repeated says nothing new: the newest of each seed counts."""
    results = (run.results() for run in sorted(runs, key=lambda run: run.started))
    newest = {result["seed"]: result for result in results}
    return tuple(newest[seed] for seed in sorted(newest))


def _typed(run: Run) -> dict[str, str]:
    """The settings that were typed to start the run, as they stand before and after the equals sign."""
    pairs = (override.lstrip("+").partition("=")[::2] for override in run.config().get("overrides") or [])
    # Of these groups it is single settings that tell.
    left_out = ("seed", "init_from", "callbacks", "logger", "trainer")
    return {
        name: value
        for name, value in pairs
        if (is_setting(name) or is_checkpoint_setting(name)) and name not in left_out
    }


def _factors(groups: Sequence[tuple[dict[str, Setting], dict[str, str]]]) -> list[str]:
    """The names of what tells the groups apart: the options that were typed, if that is enough, else the settings.

    That a run saw only some batches is always told.
    """
    typed = _differing([typed for _, typed in groups])
    settings = _differing([values for values, _ in groups])
    if len({tuple(options.get(name) for name in typed) for _, options in groups}) == len(groups):
        return [*typed, *(name for name in settings if name.startswith("trainer.limit_") and name not in typed)]
    return settings


def _differing(choices: Sequence[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for choice in choices for name in choice)
    return [name for name in names if len({choice.get(name) for choice in choices}) > 1]


def _value(name: str, values: dict[str, Setting], run: Run) -> Setting:
    return values.get(name, _typed(run).get(name, "default"))


def _order(value: Setting) -> tuple[bool, float, str]:
    return (isinstance(value, str), 0.0 if isinstance(value, str) else float(value), str(value))


def comparison_table(comparison: Comparison) -> list[list[str]]:
    """The headings, then a row a group: its factors, how many seeds, mean and deviation of each of `COLUMNS`."""
    headings = [*(comparison.factors or ["runs"]), "seeds", *COLUMNS]
    return [headings, *(_row(group) for group in comparison.groups)]


def _row(group: Group) -> list[str]:
    row = [*(map(str, group.factors.values()) if group.factors else ["all"]), str(len(group.results))]
    for name, scale, digits in COLUMNS.values():
        metric = group.metric(name)
        row.append(metric.format(scale, digits) if metric else "")
    return row


def comparison_csv(comparison: Comparison) -> str:
    """A row a group: its factors, the seeds, and of each figure the mean and the standard deviation, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [name for name, _, _ in COLUMNS.values()]
    writer.writerow([*comparison.factors, "seeds", *(f"{name} {part}" for name in names for part in ("mean", "sd"))])
    for group in comparison.groups:
        metrics = [group.metric(name) for name in names]
        parts = [part for metric in metrics for part in ((metric.mean, metric.std) if metric else (None, None))]
        writer.writerow([*group.factors.values(), len(group.results), *parts])
    return text.getvalue()


def comparison_markdown(comparison: Comparison, figures: Sequence[str], remarks: Sequence[str]) -> str:
    """The table, what did not finish, the figures (file names) and remarks, each a paragraph."""
    headings, *rows = comparison_table(comparison)
    lines = [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]
    parts = ["# Comparison", "\n".join(lines), "Mean ± standard deviation over the seeds of each row."]
    if comparison.unfinished:
        listed = "\n".join(f"- {run.path}: {run.describe_state()}" for run in comparison.unfinished)
        parts.append(f"In none of the figures:\n\n{listed}")
    parts += remarks
    parts += [f"![{name}]({name})" for name in figures]
    return "\n\n".join(parts) + "\n"
