"""Comparison of runs: groups that differ in their settings, with mean and standard deviation over the seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fashion_cnn.analysis.settings import (
    Setting,
    checkpoint_settings,
    is_checkpoint_setting,
    is_setting,
    run_settings,
)
from fashion_cnn.errors import UserError
from fashion_cnn.metrics.intervals import MeanStd
from fashion_cnn.runs import Run, format_csv

# By heading: the metric in results.json, its scale and its number of digits.
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
# Metric that gives the position of a model on an axis.
SIZE = "parameters"


@dataclass(frozen=True)
class Group:
    """Finished runs that differ only in their seed, the newest of each seed.

    Attributes:
        factors: the settings that distinguish the group from the others, by name.
        results: `results.json` of each run.
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
    """Comparison of runs.

    Attributes:
        groups: the groups of the finished runs, ordered by their factors.
        factors: the names of the settings that differ.
        unfinished: the other runs, damaged ones included.
    """

    groups: tuple[Group, ...]
    factors: tuple[str, ...]
    unfinished: tuple[Run, ...]


class _Variant(NamedTuple):
    """Settings without the seed, and the runs that have them."""

    settings: dict[str, Setting]
    runs: list[Run]

    @property
    def overrides(self) -> dict[str, str]:
        return _overrides(self.runs[0])


def compare(runs: Iterable[Run]) -> Comparison:
    """Group the finished runs by their settings, ignoring the seed.

    Raises:
        UserError: if no run is finished.
    """
    runs = list(runs)
    finished = [run for run in runs if run.state == "finished"]
    if not finished:
        states = ", ".join(f"{run.path} ({run.state})" for run in runs[:3])
        raise UserError(f"nothing to compare: no finished run among {len(runs)}: {states or 'give runs=DIR'}.")
    variants = _variants(finished)
    # A single variant is compared with the settings of the unfinished runs.
    compared = variants if len(variants) > 1 else _variants(run for run in runs if run.state != "damaged")
    factors = _factor_names(compared)
    groups = [
        Group(
            {name: variant.settings.get(name, variant.overrides.get(name, "default")) for name in factors},
            _results_by_seed(variant.runs),
        )
        for variant in variants
    ]
    groups.sort(key=lambda group: [_sort_key(value) for value in group.factors.values()])
    return Comparison(tuple(groups), tuple(factors), tuple(run for run in runs if run not in finished))


def _variants(runs: Iterable[Run]) -> list[_Variant]:
    variants: dict[tuple[tuple[str, Setting], ...], _Variant] = {}
    for run in runs:
        settings = _settings_without_seed(run)
        key = tuple(sorted(settings.items(), key=lambda item: item[0]))
        variants.setdefault(key, _Variant(dict(key), [])).runs.append(run)
    return list(variants.values())


def _settings_without_seed(run: Run) -> dict[str, Setting]:
    config = run.config()
    settings = run_settings(config) | checkpoint_settings(config)
    # Initial weights and teachers differ between seeds: only their presence and number count.
    if "init_from" in settings:
        settings["init_from"] = "another run"
    if "distillation.teachers" in settings:
        settings["distillation.teachers"] = len(config.distillation.teachers)
    return {name: value for name, value in settings.items() if name != "seed"}


def _results_by_seed(runs: Sequence[Run]) -> tuple[dict[str, Any], ...]:
    """Results of the newest run of each seed, in the order of the seeds."""
    results = (run.results() for run in sorted(runs, key=lambda run: run.started))
    newest = {result["seed"]: result for result in results}
    return tuple(newest[seed] for seed in sorted(newest))


def _overrides(run: Run) -> dict[str, str]:
    """Overrides of the settings on the command line of a run."""
    pairs = (override.lstrip("+").partition("=")[::2] for override in run.config().get("overrides") or [])
    # A choice of these config groups is compared by its single settings.
    ignored = ("seed", "init_from", "callbacks", "logger", "trainer")
    return {
        name: value
        for name, value in pairs
        if (is_setting(name) or is_checkpoint_setting(name)) and name not in ignored
    }


def _factor_names(variants: Sequence[_Variant]) -> list[str]:
    """Names of the overrides that distinguish the variants, if they suffice, else of the settings.

    Limits of the number of batches always count.
    """
    overrides = [variant.overrides for variant in variants]
    names = _differing(overrides)
    settings = _differing([variant.settings for variant in variants])
    if len({tuple(values.get(name) for name in names) for values in overrides}) == len(variants):
        return [*names, *(name for name in settings if name.startswith("trainer.limit_") and name not in names)]
    return settings


def _differing(choices: Sequence[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for choice in choices for name in choice)
    return [name for name in names if len({choice.get(name) for choice in choices}) > 1]


def _sort_key(value: Setting) -> tuple[bool, float, str]:
    return (isinstance(value, str), 0.0 if isinstance(value, str) else float(value), str(value))


def comparison_table(comparison: Comparison) -> list[list[str]]:
    """Format the headings and one row per group: factors, number of seeds, mean ± std of each of `COLUMNS`."""
    headings = [*(comparison.factors or ["runs"]), "seeds", *COLUMNS]
    return [headings, *(_row(group) for group in comparison.groups)]


def _row(group: Group) -> list[str]:
    row = [*(map(str, group.factors.values()) if group.factors else ["all"]), str(len(group.results))]
    for name, scale, digits in COLUMNS.values():
        metric = group.metric(name)
        row.append(metric.format(scale, digits) if metric else "")
    return row


def comparison_csv(comparison: Comparison) -> str:
    """Format one row per group: factors, number of seeds, mean and standard deviation of each metric, unrounded."""
    names = [name for name, _, _ in COLUMNS.values()]
    rows: list[list[Any]] = [
        [*comparison.factors, "seeds", *(f"{name} {part}" for name in names for part in ("mean", "sd"))]
    ]
    for group in comparison.groups:
        metrics = [group.metric(name) for name in names]
        parts = [part for metric in metrics for part in ((metric.mean, metric.std) if metric else (None, None))]
        rows.append([*group.factors.values(), len(group.results), *parts])
    return format_csv(rows)


def comparison_markdown(comparison: Comparison, plots: Sequence[str], remarks: Sequence[str]) -> str:
    """Format the table, the unfinished runs, the remarks (one paragraph each) and the plots (file names)."""
    headings, *rows = comparison_table(comparison)
    lines = [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]
    parts = ["# Comparison", "\n".join(lines), "Mean ± standard deviation over the seeds of each row."]
    if comparison.unfinished:
        runs = "\n".join(f"- {run.path}: {run.describe_state()}" for run in comparison.unfinished)
        parts.append(f"Unfinished runs, not included:\n\n{runs}")
    parts += remarks
    parts += [f"![{name}]({name})" for name in plots]
    return "\n\n".join(parts) + "\n"
