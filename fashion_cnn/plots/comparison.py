"""Figures of a comparison: gap and accuracy against a setting, and the learning curve."""

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

# Lines whose names have room among them, and below them.
_MOST_INSIDE = 4
_MOST_NAMED = 8
# Of a name, in characters, and of a row of the legend, in inches.
_LONGEST_LABEL = 60
_LEGEND_ROW = 0.21
# Numbers have room side by side as far apart as this share of the axis.
_CLOSEST = 0.07


def plot_comparison(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """For each factor in which alone two groups or more differ, a figure and its name."""
    for factor in comparison.factors:
        lines = _lines(comparison, factor)
        if all(len(groups) < 2 for groups in lines.values()):
            continue
        # In two columns, those of the accuracies too.
        below = (min(len(lines), _MOST_NAMED) + 4) // 2 if _crowded(lines) else 0
        figure = Figure(figsize=(11, 4.6 + _LEGEND_ROW * below), layout="constrained")
        left, right = figure.subplots(1, 2)
        plot_gap_against(comparison, factor, left)
        plot_accuracy_against(comparison, factor, right)
        if below:
            _one_legend_below(figure, left, right)
        yield f"against_{factor.replace('/', '-')}", figure


def _one_legend_below(figure: Figure, *axes: Axes) -> None:
    """Many names would lie over the lines, or leave no room for them."""
    entries = [each.get_legend_handles_labels() for each in axes]
    for each in axes:
        if legend := each.get_legend():
            legend.remove()
    handles, labels = (list(chain.from_iterable(part)) for part in zip(*entries, strict=True))
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize="small", ncols=2)


def plot_gap_against(comparison: Comparison, factor: str, axes: Axes) -> None:
    """Draw the accuracy gap against `factor`, a line for each choice of the other factors."""
    scale = _Scale(comparison, factor)
    lines = _lines(comparison, factor)
    for number, (label, groups) in enumerate(lines.items()):
        named = _cut(label or "gap") if number < _MOST_NAMED else None
        scale.plot(groups, "gap/accuracy", axes, color=COLOR, alpha=_fade(number), label=named)
    if len(lines) > _MOST_NAMED:
        axes.errorbar([], [], linestyle="none", label=f"and {len(lines) - _MOST_NAMED} more")
    axes.axhline(0, color="black", linewidth=0.8)
    scale.finish(axes)
    axes.set_ylabel("gap in accuracy, train to validation (points)")


def plot_accuracy_against(comparison: Comparison, factor: str, axes: Axes) -> None:
    """Draw train and validation accuracy against `factor`, a pair of lines for each choice of the other factors."""
    scale = _Scale(comparison, factor)
    lines = _lines(comparison, factor)
    for number, (label, groups) in enumerate(lines.items()):
        for split in ("train", "val"):
            style = {**STYLES[split], "alpha": _fade(number)}
            if not _crowded(lines):
                style["label"] = ", ".join(filter(None, (STYLES[split]["label"], _cut(label))))
            elif number:
                # The names of so many stand beside it, with the gap.
                style["label"] = None
            scale.plot(groups, f"{split}/accuracy", axes, **style)
    scale.finish(axes)
    axes.set_ylabel("accuracy (%)")


def _lines(comparison: Comparison, factor: str) -> dict[str, list[Group]]:
    """The groups that differ in `factor` alone, by what the others are."""
    lines: dict[str, list[Group]] = {}
    for group in comparison.groups:
        rest = ", ".join(f"{name}={value}" for name, value in group.factors.items() if name != factor)
        lines.setdefault(rest, []).append(group)
    return lines


def _crowded(lines: dict[str, list[Group]]) -> bool:
    """Whether the names of the lines would lie over them."""
    return len(lines) > _MOST_INSIDE or any(len(label) > _LONGEST_LABEL / 2 for label in lines)


def _cut(label: str, longest: int = _LONGEST_LABEL) -> str:
    """As a label, without its middle where it is too long: lists tend to differ at their ends."""
    half = (longest - 1) // 2
    return escape_label(label if len(label) <= longest else f"{label[:half]}…{label[-half:]}")


def _fade(number: int) -> float:
    return max(1 / (1 + 0.5 * number), 0.1)


class _Scale:
    """Where the groups lie on the axis of a factor: at their numbers, if all have one, else side by side by name.

    A model lies at its number of parameters.
    """

    def __init__(self, comparison: Comparison, factor: str) -> None:
        self.factor = factor
        self.label = factor
        values = {group.factors[factor] for group in comparison.groups}
        sizes = [group.metric(SIZE) for group in comparison.groups]
        self.by_size = factor == "model" and all(sizes)
        if self.by_size:
            self.label = "parameters"
            numbers = [size.mean for size in sizes if size]
        else:
            numbers = [float(value) for value in values if _is_number(value)]
        self.names: list[str] = []
        if not self.by_size and len(numbers) < len(values):
            self.names = sorted(map(str, values))
        self.numbers = sorted(set(numbers))
        self.logarithmic = not self.names and min(numbers) > 0 and max(numbers) >= 8 * min(numbers)

    def place(self, group: Group) -> float:
        size = group.metric(SIZE)
        if self.by_size and size:
            return size.mean
        value = group.factors[self.factor]
        return self.names.index(str(value)) if self.names else float(value)

    def plot(self, groups: list[Group], name: str, axes: Axes, **style: object) -> None:
        """Draw mean and standard deviation of a figure over the groups that have it."""
        points = [(self.place(group), metric) for group in groups if (metric := group.metric(name))]
        points.sort(key=lambda point: point[0])
        means = np.array([metric.mean for _, metric in points]) * 100
        deviations = np.array([metric.std or 0.0 for _, metric in points]) * 100
        places = [place for place, _ in points]
        if self.names:
            # Nothing lies between two names.
            style["linestyle"] = "none"
        axes.errorbar(places, means, yerr=deviations, marker="o", capsize=3, **style)  # type: ignore[arg-type]

    def _with_room(self) -> list[float]:
        """The numbers whose labels on a logarithmic axis do not run into the one before."""
        share = np.log(np.array(self.numbers) / self.numbers[0]) / np.log(self.numbers[-1] / self.numbers[0])
        shown: list[int] = []
        for place in range(len(self.numbers)):
            if not shown or share[place] - share[shown[-1]] >= _CLOSEST:
                shown.append(place)
        return [self.numbers[place] for place in shown]

    def finish(self, axes: Axes) -> None:
        if self.names:
            names = [_cut(name, 24) for name in self.names]
            axes.set_xticks(range(len(names)), names, rotation=20 if len(names) <= _MOST_INSIDE else 90)
        if self.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            shown = self._with_room()
            crowded = len(shown) > _MOST_INSIDE
            axes.set_xticks(shown, [f"{number:,.6g}" for number in shown], rotation=30 if crowded else 0)
        axes.set_xlabel(self.label)
        axes.legend(frameon=False, fontsize="small")
        axes.grid(alpha=0.3)


def _is_number(value: Setting) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plot_learning_curve(curve: LearningCurve, axes: Axes, *, reach: float = 10.0) -> None:
    """Draw the errors and the law, `reach` times as far as there are images."""
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
    axes.set(xscale="log", yscale="log", xlabel="training images (n)", ylabel="validation error (%)")
    # Plain numbers: errors span less than two powers of ten.
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, which="both")
