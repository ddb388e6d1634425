"""What a swept setting did: the gap against it, and train and validation accuracy against it."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fashion_cnn.analysis.comparison import SIZE, Comparison, Group
from fashion_cnn.analysis.curves import STYLES
from fashion_cnn.analysis.gap_plots import COLOR


def plots(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """For each factor with two values or more, a figure and its name."""
    for factor in comparison.factors:
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        plot_gap_against(comparison, factor, left)
        plot_accuracy_against(comparison, factor, right)
        yield f"against_{factor.replace('/', '-')}", figure


def plot_gap_against(comparison: Comparison, factor: str, axes: Axes) -> None:
    """Draw the accuracy gap against `factor`, a line for each choice of the other factors."""
    for number, (label, groups) in enumerate(_lines(comparison, factor).items()):
        _plot(groups, factor, "gap/accuracy", axes, color=COLOR, alpha=_fade(number), label=label or "gap")
    axes.axhline(0, color="black", linewidth=0.8)
    _finish(comparison, factor, axes)
    axes.set_ylabel("gap in accuracy, train to validation (points)")


def plot_accuracy_against(comparison: Comparison, factor: str, axes: Axes) -> None:
    """Draw train and validation accuracy against `factor`, a pair of lines for each choice of the other factors."""
    for number, (label, groups) in enumerate(_lines(comparison, factor).items()):
        for split in ("train", "val"):
            style = {**STYLES[split], "alpha": _fade(number)}
            style["label"] = ", ".join(filter(None, (STYLES[split]["label"], label)))
            _plot(groups, factor, f"{split}/accuracy", axes, **style)
    _finish(comparison, factor, axes)
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


def _plot(groups: list[Group], factor: str, name: str, axes: Axes, **style: object) -> None:
    points = [(place, figure) for group in groups if (figure := group.figure(name)) for place in [_x(group, factor)]]
    if points:
        points.sort(key=lambda point: (isinstance(point[0], str), point[0]))
        places = [place for place, _ in points]
        means = np.array([figure.mean for _, figure in points]) * 100
        deviations = np.array([figure.deviation or 0.0 for _, figure in points]) * 100
        axes.errorbar(places, means, yerr=deviations, marker="o", capsize=3, **style)  # type: ignore[arg-type]


def _x(group: Group, factor: str) -> float | str:
    """Where the group lies: at its number of parameters for a model, at the value of a number, else at its name."""
    size = group.figure(SIZE)
    if factor == "model" and size is not None:
        return size.mean
    value = group.factors[factor]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _finish(comparison: Comparison, factor: str, axes: Axes) -> None:
    places = [_x(group, factor) for group in comparison.groups]
    numbers = [place for place in places if isinstance(place, float)]
    if len(numbers) == len(places) and min(numbers) > 0 and max(numbers) >= 8 * min(numbers):
        axes.set_xscale("log")
    axes.set_xlabel("parameters" if factor == "model" else factor)
    axes.legend(frameon=False, fontsize="small")
    axes.grid(alpha=0.3)
