"""Plots of a comparison of runs: gap and accuracy against a setting, and the learning curve."""

import re
from collections.abc import Iterator
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullFormatter

from fashion_cnn.analysis.comparison import SIZE, Comparison, Group
from fashion_cnn.analysis.learning_curve import LearningCurve
from fashion_cnn.analysis.settings import Setting
from fashion_cnn.plots.style import escape_label
from fashion_cnn.plots.training import COLOR, STYLES

# Largest number of lines whose legend fits inside the axes, and below them.
_MAX_INSIDE = 4
_MAX_LEGEND = 8
# Largest length of a label in characters, and height of a legend row in inches.
_MAX_LABEL = 60
_LEGEND_ROW = 0.21
_MAX_FILE_NAME = 60
# Smallest distance of two tick labels, as a fraction of the axis.
_MIN_TICK_DISTANCE = 0.07


def plot_comparison(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """Draw a figure for each factor that at least two groups differ in alone; yields its name and the figure."""
    for factor in comparison.factors:
        lines = _lines(comparison, factor)
        if all(len(groups) < 2 for groups in lines.values()):
            continue
        # Legend rows below the axes: two columns of the lines and the four entries of the accuracies.
        legend_rows = (min(len(lines), _MAX_LEGEND) + 4) // 2 if _crowded(lines) else 0
        figure = Figure(figsize=(11, 4.6 + _LEGEND_ROW * legend_rows), layout="constrained")
        left, right = figure.subplots(1, 2)
        figure.suptitle(f"Effect of {escape_label(factor)}{_describe_bars(comparison)}")
        plot_gap_against(comparison, factor, left)
        plot_accuracy_against(comparison, factor, right)
        if legend_rows:
            _move_legends_below(figure, left, right)
        # The settings of someone else may have names that no file can have.
        name = re.sub(r"[^\w.=-]", "-", factor)[:_MAX_FILE_NAME]
        yield f"against_{name}", figure


def _describe_bars(comparison: Comparison) -> str:
    return (
        ": mean ± standard deviation over seeds" if any(len(group.results) > 1 for group in comparison.groups) else ""
    )


def _move_legends_below(figure: Figure, *panels: Axes) -> None:
    """Merge the legends of all axes into one below them, where many names do not cover the lines."""
    entries = [axes.get_legend_handles_labels() for axes in panels]
    for axes in panels:
        if legend := axes.get_legend():
            legend.remove()
    handles, labels = (list(chain.from_iterable(part)) for part in zip(*entries, strict=True))
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize="small", ncols=2)


def plot_gap_against(comparison: Comparison, factor: str, axes: Axes) -> None:
    """Draw the accuracy gap against `factor`, one line for each combination of the other factors."""
    scale = _Scale(comparison, factor)
    lines = _lines(comparison, factor)
    for number, (label, groups) in enumerate(lines.items()):
        legend = _shorten(label or "gap") if number < _MAX_LEGEND else None
        scale.plot(groups, "gap/accuracy", axes, color=COLOR, alpha=_fade(number), label=legend)
    if len(lines) > _MAX_LEGEND:
        axes.errorbar([], [], linestyle="none", label=f"and {len(lines) - _MAX_LEGEND} more")
    axes.axhline(0, color="black", linewidth=0.8)
    scale.finish(axes)
    axes.set(ylabel="gap, train probe to validation (points)", title="Accuracy gap")


def plot_accuracy_against(comparison: Comparison, factor: str, axes: Axes) -> None:
    """Draw training and validation accuracy against `factor`, two lines for each combination of the other factors."""
    scale = _Scale(comparison, factor)
    lines = _lines(comparison, factor)
    for number, (label, groups) in enumerate(lines.items()):
        for split in ("train", "val"):
            style = {**STYLES[split], "alpha": _fade(number)}
            if not _crowded(lines):
                style["label"] = ", ".join(filter(None, (STYLES[split]["label"], _shorten(label))))
            elif number:
                # The legend of the gap has the names of the other lines.
                style["label"] = None
            scale.plot(groups, f"{split}/accuracy", axes, **style)
    scale.finish(axes)
    axes.set(ylabel="accuracy (%)", title="Accuracy")


def _lines(comparison: Comparison, factor: str) -> dict[str, list[Group]]:
    """Groups that differ in `factor` alone, by the values of the other factors."""
    lines: dict[str, list[Group]] = {}
    for group in comparison.groups:
        others = ", ".join(f"{name}={value}" for name, value in group.factors.items() if name != factor)
        lines.setdefault(others, []).append(group)
    return lines


def _crowded(lines: dict[str, list[Group]]) -> bool:
    """Return True if the legend would cover the lines."""
    return len(lines) > _MAX_INSIDE or any(len(label) > _MAX_LABEL / 2 for label in lines)


def _shorten(label: str, max_length: int = _MAX_LABEL) -> str:
    """Escape a label and drop the middle of a long one: lists tend to differ at their ends."""
    half = (max_length - 1) // 2
    return escape_label(label if len(label) <= max_length else f"{label[:half]}…{label[-half:]}")


def _fade(number: int) -> float:
    return max(1 / (1 + 0.5 * number), 0.1)


class _Scale:
    """Position of the groups on the axis of a factor: numeric if all values are numbers, else categorical.

    A model is placed at its number of parameters.
    """

    def __init__(self, comparison: Comparison, factor: str) -> None:
        self.factor = factor
        self.by_size = factor == "model" and all(group.metric(SIZE) for group in comparison.groups)
        self.label = "parameters" if self.by_size else factor
        values = [self._value(group) for group in comparison.groups]
        self.numbers = sorted({float(value) for value in values if _is_number(value)})
        self.names = [] if all(map(_is_number, values)) else sorted({str(value) for value in values})
        self.logarithmic = not self.names and self.numbers[0] > 0 and self.numbers[-1] >= 8 * self.numbers[0]

    def _value(self, group: Group) -> Setting:
        size = group.metric(SIZE)
        return size.mean if self.by_size and size else group.factors[self.factor]

    def position(self, group: Group) -> float:
        """Position of a group on the axis."""
        value = self._value(group)
        return self.names.index(str(value)) if self.names else float(value)

    def plot(self, groups: list[Group], name: str, axes: Axes, **style: object) -> None:
        """Draw mean and standard deviation, in percent, of a metric of the groups that have it."""
        points = [(self.position(group), metric) for group in groups if (metric := group.metric(name))]
        points.sort(key=lambda point: point[0])
        means = np.array([metric.mean for _, metric in points]) * 100
        # Without several seeds there is no standard deviation to draw.
        has_seeds = any(metric.std is not None for _, metric in points)
        deviations = np.array([metric.std or 0.0 for _, metric in points]) * 100 if has_seeds else None
        positions = [position for position, _ in points]
        if self.names:
            # No line connects categories.
            style["linestyle"] = "none"
        axes.errorbar(positions, means, yerr=deviations, marker="o", capsize=3, **style)  # type: ignore[arg-type]

    def _spaced_ticks(self) -> list[float]:
        """Numbers whose tick labels on a logarithmic axis do not overlap the previous one."""
        positions = np.log(np.array(self.numbers) / self.numbers[0]) / np.log(self.numbers[-1] / self.numbers[0])
        ticks: list[int] = []
        for index, position in enumerate(positions):
            if not ticks or position - positions[ticks[-1]] >= _MIN_TICK_DISTANCE:
                ticks.append(index)
        return [self.numbers[index] for index in ticks]

    def finish(self, axes: Axes) -> None:
        """Set ticks, label, legend and grid of the axes."""
        if self.names:
            names = [_shorten(name, 18) for name in self.names]
            axes.set_xticks(range(len(names)), names, rotation=20 if len(names) <= _MAX_INSIDE else 90)
        if self.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            ticks = self._spaced_ticks()
            rotation = 30 if len(ticks) > _MAX_INSIDE else 0
            axes.set_xticks(ticks, [f"{number:,.6g}" for number in ticks], rotation=rotation)
        axes.set_xlabel(self.label)
        axes.legend(frameon=False, fontsize="small")
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
    label = f"{law.scale:.3g} · n^-{law.exponent:.3f}" + (f" + {law.floor:.4f}" if law.floor else "")
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
        title="Learning curve, one point for each seed",
    )
    # Plain numbers, since the errors span less than two powers of ten.
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, which="both")
    return figure
