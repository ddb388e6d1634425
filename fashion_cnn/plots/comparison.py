"""Plots of several runs: gap and accuracy against a setting, the learning curve, and the trials of a search."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fashion_cnn.analysis.comparison import SIZE, Comparison, Group
from fashion_cnn.analysis.learning_curve import LearningCurve
from fashion_cnn.analysis.settings import Setting
from fashion_cnn.plots.style import LINE_COLORS, add_subtitle, escape_label
from fashion_cnn.plots.training import GAP_COLOR, STYLES
from fashion_cnn.runs.overrides import short_names

# Largest number of lines with a colour and a legend entry.
_MAX_LEGEND = 8
_OTHER_COLOR = "#999999"
_MARKERS = "osD^vPX*<>"
# Largest length of a label in characters, and of the labels of a legend in two columns; height of its rows in inches.
_MAX_LABEL = 110
_MAX_COLUMN = 52
_LEGEND_ROW = 0.22
# Largest number of tick labels side by side.
_MAX_LEVEL_TICKS = 4
_MAX_FILE_NAME = 60
# Number of complete trials below which the importance of settings is called uncertain.
_MIN_TRIALS_FOR_RANKING = 20
# Ratio of the ends of a logarithmic axis below which its ticks are evenly spaced numbers.
_NARROW = 5
# Shift of the points of a line on an axis of numbers, as a fraction of the axis for each unit of `_offset`.
_MAX_SHIFT = 0.06
# Smallest distance of two tick labels, as a fraction of the axis.
_MIN_TICK_DISTANCE = 0.07


def plot_comparison(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """Draw a figure for each factor that at least two groups differ in alone; yields its name and the figure."""
    for factor in comparison.factors:
        lines = _lines(comparison, factor)
        if all(len(groups) < 2 for groups in lines.values()):
            continue
        columns = 1 if any(len(label) > _MAX_COLUMN for label in lines) else 2
        # Legend rows below the axes.
        rows = -(-min(len(lines), _MAX_LEGEND + 1) // columns) if len(lines) > 1 else 0
        figure = Figure(figsize=(11, 4.6 + _LEGEND_ROW * rows), layout="constrained")
        left, right = figure.subplots(1, 2)
        figure.suptitle(escape_label(_title(comparison, factor, lines)))
        plot_accuracy_against(comparison, factor, left)
        plot_gap_against(comparison, factor, right)
        if rows:
            handles = left.get_legend_handles_labels()[0]
            figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize="small", ncols=columns)
        # The settings of someone else may have names that no file can have.
        name = re.sub(r"[^\w.=-]", "-", factor)[:_MAX_FILE_NAME]
        yield f"against_{name}", figure


def _title(comparison: Comparison, factor: str, lines: dict[str, list[Group]]) -> str:
    """The factor, what the error bars are, and the other settings that all lines have in common."""
    groups = [group for line in lines.values() for group in line]
    bars = ": mean ± standard deviation, and each seed" if any(len(group.results) > 1 for group in groups) else ""
    names = short_names(name for name in comparison.factors if name != factor)
    values = {names[name]: {group.factors[name] for group in groups} for name in names}
    common = ", ".join(f"{name}={value}" for name, (value, *others) in values.items() if not others)
    return f"Effect of {factor}{bars}" + (f"\nwith {common}" if common else "")


def plot_gap_against(comparison: Comparison, factor: str, axes: Axes) -> None:
    """Draw the accuracy gap against `factor`, one line for each combination of the other factors."""
    _plot_against(comparison, factor, "gap/accuracy", axes, color=GAP_COLOR)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(ylabel="gap, train probe to validation (points)", title="Accuracy gap")


def plot_accuracy_against(comparison: Comparison, factor: str, axes: Axes) -> None:
    """Draw validation accuracy against `factor`, one line for each combination of the other factors.

    Training accuracy, which is higher by the gap, would hide the differences.
    """
    _plot_against(comparison, factor, "val/accuracy", axes, color=STYLES["val"]["color"])
    axes.set(ylabel="validation accuracy (%)", title="Validation accuracy")


def _plot_against(comparison: Comparison, factor: str, name: str, axes: Axes, *, color: str) -> None:
    """Draw a metric against `factor`; `color` is that of a single line."""
    lines = _lines(comparison, factor)
    scale = _Scale([group for groups in lines.values() for group in groups], factor)
    for number, (label, groups) in enumerate(lines.items()):
        style = {"label": _shorten(label), **_line_style(number)} if len(lines) > 1 else {"color": color}
        scale.plot(groups, name, axes, offset=_offset(number, len(lines)), width=1 / len(lines), **style)
    if len(lines) > _MAX_LEGEND:
        axes.errorbar([], [], color=_OTHER_COLOR, label=f"{len(lines) - _MAX_LEGEND} others")
    scale.finish(axes)


def _lines(comparison: Comparison, factor: str) -> dict[str, list[Group]]:
    """Groups that differ in `factor` alone, by the values of the other factors, as far as these differ between lines.

    Groups that differ in another factor too are left out, unless no two differ in `factor` alone.
    """
    lines: dict[tuple[tuple[str, Setting], ...], list[Group]] = {}
    for group in comparison.groups:
        others = tuple((name, value) for name, value in group.factors.items() if name != factor)
        lines.setdefault(others, []).append(group)
    shown = {others: groups for others, groups in lines.items() if len(groups) > 1} or lines
    differing = {name for others in shown for name, value in others if dict(next(iter(shown)))[name] != value}
    names = short_names(differing)
    return {
        ", ".join(f"{names[name]}={value}" for name, value in others if name in differing): groups
        for others, groups in shown.items()
    }


def _shorten(label: str, max_length: int = _MAX_LABEL) -> str:
    """Escape a label and drop the middle of a long one: lists tend to differ at their ends."""
    half = (max_length - 1) // 2
    return escape_label(label if len(label) <= max_length else f"{label[:half]}…{label[-half:]}")


def _line_style(number: int) -> dict[str, Any]:
    """Colour and marker of a line; the last ones are grey, and have no entry in a legend."""
    if number >= _MAX_LEGEND:
        return {"color": _OTHER_COLOR, "alpha": 0.5, "marker": ".", "label": None}
    return {"color": LINE_COLORS[number], "marker": _MARKERS[number]}


def _offset(number: int, lines: int) -> float:
    """Distance of the points of a line from their category, so that the error bars of other lines are beside them."""
    return 0.6 * ((number + 0.5) / lines - 0.5)


class _Scale:
    """Position of the groups on the axis of a factor: numeric if all values are numbers, else categorical.

    A model is placed at its number of parameters.
    """

    def __init__(self, groups: Sequence[Group], factor: str) -> None:
        self.factor = factor
        self.by_size = factor == "model" and all(group.metric(SIZE) for group in groups)
        self.label = "parameters" if self.by_size else factor
        values = [self._value(group) for group in groups]
        self.numbers = sorted({float(value) for value in values if _is_number(value)})
        self.names = [] if all(map(_is_number, values)) else sorted({str(value) for value in values})
        if factor == "remedy":
            # The runs that the others are compared with come first.
            self.names.sort(key=lambda name: name != "none")
        self.logarithmic = not self.names and self.numbers[0] > 0 and self.numbers[-1] >= 8 * self.numbers[0]

    def _value(self, group: Group) -> Setting:
        size = group.metric(SIZE)
        return size.mean if self.by_size and size else group.factors[self.factor]

    def position(self, group: Group) -> float:
        """Position of a group on the axis."""
        value = self._value(group)
        return self.names.index(str(value)) if self.names else float(value)

    def plot(
        self, groups: list[Group], name: str, axes: Axes, *, offset: float = 0.0, width: float = 1.0, **style: Any
    ) -> None:
        """Draw mean and standard deviation, in percent, of a metric of the groups that have it, and each seed.

        Args:
            groups: the groups, in any order.
            name: name of the metric.
            axes: the axes to draw on.
            offset: distance of the points from their category.
            width: width of the line's part of a category.
            style: color, marker and label of the line.
        """
        groups = sorted((group for group in groups if group.values(name)), key=self.position)
        points = [(self.position(group), metric) for group in groups if (metric := group.metric(name))]
        means = np.array([metric.mean for _, metric in points]) * 100
        # Without several seeds there is no standard deviation to draw.
        has_seeds = any(metric.std is not None for _, metric in points)
        deviations = np.array([metric.std or 0.0 for _, metric in points]) * 100 if has_seeds else None
        positions = [position for position, _ in points]
        if self.names:
            # No line connects categories.
            style["linestyle"] = "none"
            positions = [position + offset for position in positions]
        elif has_seeds and len(self.numbers) > 1:
            first, last = self.numbers[0], self.numbers[-1]
            shift = _MAX_SHIFT * offset
            positions = [
                position * (last / first) ** shift if self.logarithmic else position + (last - first) * shift
                for position in positions
            ]
        axes.errorbar(positions, means, yerr=deviations, **{"marker": "o", "capsize": 3, **style})
        seeds = [
            # Beside the error bar, as far as there is a place.
            (position - (0.12 * width if self.names else 0), value * 100)
            for position, group in zip(positions, groups, strict=True)
            for value in group.values(name)
            if len(group.results) > 1
        ]
        if seeds:
            places, values = zip(*seeds, strict=True)
            axes.scatter(places, values, s=14, alpha=0.5, linewidths=0, color=style["color"])

    def _spaced_ticks(self) -> list[float]:
        """Numbers whose tick labels on a logarithmic axis do not overlap the previous one."""
        positions = np.log(np.array(self.numbers) / self.numbers[0]) / np.log(self.numbers[-1] / self.numbers[0])
        ticks: list[int] = []
        for index, position in enumerate(positions):
            if not ticks or position - positions[ticks[-1]] >= _MIN_TICK_DISTANCE:
                ticks.append(index)
        return [self.numbers[index] for index in ticks]

    def finish(self, axes: Axes) -> None:
        """Set ticks, label and grid of the axes."""
        if self.names:
            names = [_shorten(name, 18) for name in self.names]
            axes.set_xticks(range(len(names)), names, rotation=20 if len(names) <= _MAX_LEVEL_TICKS else 90)
        if self.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            ticks = self._spaced_ticks()
            rotation = 30 if len(ticks) > _MAX_LEVEL_TICKS else 0
            axes.set_xticks(ticks, [f"{number:,.6g}" for number in ticks], rotation=rotation)
        axes.set_xlabel(self.label)
        axes.grid(alpha=0.3)


def _is_number(value: Setting) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plot_learning_curve(curve: LearningCurve, *, reach: float = 10.0) -> Figure:
    """Draw the errors and the fitted power law, extrapolated to `reach` times the largest training set."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    percent = 100
    for size, values in zip(curve.sizes, curve.errors, strict=True):
        axes.plot([size] * len(values), values * percent, "o", color="#D55E00", alpha=0.6)
    grid = np.geomspace(curve.sizes[0], curve.sizes[-1] * reach, 100)
    law = curve.law
    floor = f" + {law.floor * percent:.2f}" if law.floor else ""
    label = f"{law.scale * percent:.4g} · n^-{law.exponent:.3f}{floor}"
    axes.plot(grid, law(grid) * percent, color="#0072B2", label=label)
    if band := curve.interval(grid):
        axes.fill_between(
            grid, band[0] * percent, band[1] * percent, color="#0072B2", alpha=0.2, linewidth=0, label="95%, over seeds"
        )
    axes.axvspan(curve.sizes[-1], grid[-1], color="#BBBBBB", alpha=0.25, label="extrapolated")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="training images (n)",
        ylabel="validation error (%)",
        title=f"Learning curve, {'one point for each seed' if curve.resampled else 'one seed: no interval'}",
    )
    low, high = axes.get_ylim()
    is_narrow = high < _NARROW * low
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 2.5, 5, 10)) if is_narrow else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, which="both")
    return figure


@dataclass(frozen=True)
class Trial:
    """A trial of a search.

    Attributes:
        number: its number.
        finished: False if it was pruned.
        accuracy: its validation accuracy, the last one if it was pruned.
        curve: validation accuracies by percent of the schedule.
    """

    number: int
    finished: bool
    accuracy: float
    curve: Mapping[int, float]


def plot_search(trials: Sequence[Trial], importances: Mapping[str, float], *, title: str) -> dict[str, Figure]:
    """Draw the accuracy of each trial, the course of each, and the importance of the settings, by file name.

    Args:
        trials: the finished trials, at least one, and the pruned ones.
        importances: fraction of the variance of the accuracy by setting; without any there is no such plot.
        title: the name of the search.
    """
    figures = {"history": _plot_trials(trials), "curves": _plot_trial_curves(trials)}
    if importances:
        figures["importance"] = _plot_importances(importances, sum(trial.finished for trial in trials))
    for figure in figures.values():
        add_subtitle(figure, title)
    return figures


def _plot_trials(trials: Sequence[Trial]) -> Figure:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    figure.suptitle("Trials of the search")
    for finished, label in ((True, "trial"), (False, "pruned trial")):
        shown = [trial for trial in trials if trial.finished == finished]
        if shown:
            color, marker = (STYLES["val"]["color"], "o") if finished else (_OTHER_COLOR, "x")
            accuracies = [trial.accuracy * 100 for trial in shown]
            axes.scatter([trial.number for trial in shown], accuracies, color=color, marker=marker, label=label)
    done = sorted((trial for trial in trials if trial.finished), key=lambda trial: trial.number)
    best = np.maximum.accumulate([trial.accuracy * 100 for trial in done])
    numbers = [*(trial.number for trial in done), max(trial.number for trial in trials)]
    axes.step(numbers, [*best, best[-1]], where="post", color=STYLES["val"]["color"], label="best so far")
    axes.set(xlabel="trial", ylabel="validation accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    axes.grid(alpha=0.3)
    return figure


def _plot_trial_curves(trials: Sequence[Trial]) -> Figure:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    figure.suptitle("Course of each trial")
    best = max((trial for trial in trials if trial.finished), key=lambda trial: trial.accuracy)
    styles = {
        "pruned trials": {"color": _OTHER_COLOR, "linestyle": ":", "linewidth": 1},
        "other trials": {"color": STYLES["train"]["color"], "linewidth": 1, "alpha": 0.5},
        f"best trial ({best.number})": {"color": STYLES["val"]["color"], "linewidth": 2.2},
    }
    groups: tuple[list[Trial], list[Trial], list[Trial]] = ([], [], [best])
    for trial in trials:
        if trial is not best:
            groups[trial.finished].append(trial)
    for (label, style), group in zip(styles.items(), groups, strict=True):
        for number, trial in enumerate(group):
            accuracies = np.array([*trial.curve.values()]) * 100
            marker = "." if len(accuracies) < 20 else None
            axes.plot([*trial.curve], accuracies, marker=marker, label="" if number else label, **style)
    axes.set(xlabel="percent of the schedule", ylabel="validation accuracy (%)", xlim=(0, 102))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    axes.grid(alpha=0.3)
    return figure


def _plot_importances(importances: Mapping[str, float], trials: int) -> Figure:
    rows = sorted(importances.items(), key=lambda row: row[1])
    figure = Figure(figsize=(8, 1.9 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    caution = ", too few to rank the settings reliably" if trials < _MIN_TRIALS_FOR_RANKING else ""
    figure.suptitle(f"Importance of the settings for the validation accuracy\nfrom {trials} complete trials{caution}")
    bars = axes.barh([escape_label(name) for name, _ in rows], [value * 100 for _, value in rows], color=GAP_COLOR)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xlabel="share of the variance between the trials (%, fANOVA)", xlim=(0, 105))
    axes.grid(axis="x", alpha=0.3)
    return figure
