"""What a swept setting did: the gap against it, and train and validation accuracy against it."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from fashion_cnn.analysis.comparison import SIZE, Comparison, Group
from fashion_cnn.analysis.curves import STYLES
from fashion_cnn.analysis.gap_plots import COLOR
from fashion_cnn.analysis.settings import Setting

# Lines whose names have room among them.
_MOST_INSIDE = 4


def plots(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """For each factor in which alone two groups or more differ, a figure and its name."""
    for factor in comparison.factors:
        if all(len(groups) < 2 for groups in _lines(comparison, factor).values()):
            continue
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        plot_gap_against(comparison, factor, left)
        plot_accuracy_against(comparison, factor, right)
        yield f"against_{factor.replace('/', '-')}", figure


def plot_gap_against(comparison: Comparison, factor: str, axes: Axes) -> None:
    """Draw the accuracy gap against `factor`, a line for each choice of the other factors."""
    scale = _Scale(comparison, factor)
    for number, (label, groups) in enumerate(_lines(comparison, factor).items()):
        scale.plot(groups, "gap/accuracy", axes, color=COLOR, alpha=_fade(number), label=label or "gap")
    axes.axhline(0, color="black", linewidth=0.8)
    scale.finish(axes)
    axes.set_ylabel("gap in accuracy, train to validation (points)")


def plot_accuracy_against(comparison: Comparison, factor: str, axes: Axes) -> None:
    """Draw train and validation accuracy against `factor`, a pair of lines for each choice of the other factors."""
    scale = _Scale(comparison, factor)
    for number, (label, groups) in enumerate(_lines(comparison, factor).items()):
        for split in ("train", "val"):
            style = {**STYLES[split], "alpha": _fade(number)}
            style["label"] = ", ".join(filter(None, (STYLES[split]["label"], label)))
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


def _fade(number: int) -> float:
    return 1 / (1 + 0.5 * number)


class _Scale:
    """Where the groups lie on the axis of a factor: at their numbers, if all have one, else side by side by name.

    A model lies at its number of parameters.
    """

    def __init__(self, comparison: Comparison, factor: str) -> None:
        self.factor = factor
        self.label = factor
        values = {group.factors[factor] for group in comparison.groups}
        sizes = [group.figure(SIZE) for group in comparison.groups]
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
        size = group.figure(SIZE)
        if self.by_size and size:
            return size.mean
        value = group.factors[self.factor]
        return self.names.index(str(value)) if self.names else float(value)

    def plot(self, groups: list[Group], name: str, axes: Axes, **style: object) -> None:
        """Draw mean and standard deviation of a figure over the groups that have it."""
        points = [(self.place(group), figure) for group in groups if (figure := group.figure(name))]
        points.sort(key=lambda point: point[0])
        means = np.array([figure.mean for _, figure in points]) * 100
        deviations = np.array([figure.deviation or 0.0 for _, figure in points]) * 100
        places = [place for place, _ in points]
        if self.names:
            # Nothing lies between two names.
            style["linestyle"] = "none"
        axes.errorbar(places, means, yerr=deviations, marker="o", capsize=3, **style)  # type: ignore[arg-type]

    def finish(self, axes: Axes) -> None:
        if self.names:
            axes.set_xticks(range(len(self.names)), self.names, rotation=20)
        if self.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xticks(self.numbers, [f"{number:,.6g}" for number in self.numbers])
        axes.set_xlabel(self.label)
        if len(axes.get_lines()) > _MOST_INSIDE:
            # The names of many choices would lie over the lines.
            axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16))
        else:
            axes.legend(frameon=False, fontsize="small")
        axes.grid(alpha=0.3)


def _is_number(value: Setting) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
