"""Robustness of an evaluated network, written and drawn: corrupted images, and images outside its classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.corruptions import SEVERITIES
from fashion_cnn.evaluation.evaluate import Measured, Split
from fashion_cnn.evaluation.outliers import SCORES, Outliers, Separation, measure_outliers
from fashion_cnn.evaluation.robustness import (
    CorruptionErrors,
    Robustness,
    corruption_errors,
    measure_robustness,
    read_robustness,
    require_comparable,
)
from fashion_cnn.plots.style import save_figure
from fashion_cnn.runs import find_finished_run, write_atomically

FIGURES_FILE = "robustness.json"
# Of `experiment=baseline`, seed 1, on the test images of Fashion-MNIST.
RECORDED_BASELINE = Path(__file__).parent / "baseline_robustness.json"
RECORDED = "experiment=baseline, as recorded"
_HISTOGRAM_BINS = 40
_SCORE_LABELS = {"confidence": "confidence", "energy": "negative energy"}


class Baseline(NamedTuple):
    """What a network is held against, and where that was read."""

    name: str
    robustness: Robustness


def read_baseline(reference: str, split: Split, runs_dir: Path) -> Baseline:
    """What `evaluate` measured of a run, of several as one (by the folder that it wrote), or a file of that.

    Raises UserError where there is none, or none that a measurement can be held against.
    """
    path = Path(reference).expanduser()
    written = (path, path / split / FIGURES_FILE, path / FIGURES_FILE, path / "evaluation" / split / FIGURES_FILE)
    file = next((file for file in written if file.is_file()), None)
    if file is None:
        run = find_finished_run(reference, runs_dir)
        path, file = run.path, run.evaluation / split / FIGURES_FILE
    robustness = read_robustness(file)
    require_comparable(robustness, robustness.data_sha256)
    return Baseline(str(path), robustness)


def measure_strength(
    measured: Measured, folder: Path, *, baseline: Baseline | None, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write what the network bears into `folder`, as JSON and drawn, and return it.

    baseline: None for the recorded one of `model=baseline`, which is of Fashion-MNIST's test images. progress: called
    with the passes made and of all passes. Raises UserError where `baseline` is of other images.
    """
    if baseline and baseline.robustness.data_sha256 != measured.fingerprint:
        raise UserError(
            f"{baseline.name} was measured on other images: measure both on the same split of the same data."
        )
    targets, batch_size = measured.predictions.targets, measured.data.eval_batch_size
    result = measure_robustness(measured.classify, measured.images, targets, batch_size=batch_size, progress=progress)
    left_out = measured.data.left_out_split.images if measured.split == "test" else None
    outliers = measure_outliers(measured.classify, measured.images, left_out=left_out, batch_size=batch_size)
    if baseline is None and (recorded := read_robustness(RECORDED_BASELINE)).data_sha256 == result.data_sha256:
        baseline = Baseline(RECORDED, recorded)
    errors = stored = None
    if baseline:
        errors = corruption_errors(result, baseline.robustness)
        stored = {"baseline": baseline.name, "mean": errors.mean, "by_corruption": errors.by_corruption}
    outcome = result.to_dict() | {"corruption_errors": stored, "outliers": outliers.to_dict()}
    heat_map = Figure(figsize=(7.5, 6.5), layout="constrained")
    plot_robustness(
        result, heat_map.subplots(), title=f"Accuracy on corrupted images of {measured.split}", errors=errors
    )
    save_figure(heat_map, folder / "robustness.png")
    save_figure(plot_outliers(outliers), folder / "outliers.png")
    write_atomically(folder / FIGURES_FILE, json.dumps(outcome, indent=2) + "\n")
    return outcome


def plot_robustness(result: Robustness, axes: Axes, *, title: str, errors: CorruptionErrors | None = None) -> None:
    """Draw a heat map of the accuracies in percent: a row a corruption, a column a severity, the clean one on top.

    Means stand at the right and at the bottom. errors: for a last column, as percent of the baseline's.
    """
    rows = {"clean": (result.clean,) * len(SEVERITIES), **result.accuracy}
    accuracy = 100 * np.array([*rows.values(), np.mean([*result.accuracy.values()], axis=0)])
    accuracy = np.column_stack([accuracy, accuracy.mean(axis=1)])
    headings = [*map(str, SEVERITIES), "mean"]
    if errors:
        headings.append("% of baseline's\nerrors")
        for row, error in enumerate([*errors.by_corruption.values(), errors.mean], start=1):
            axes.text(len(SEVERITIES) + 1, row, f"{error:.0f}", ha="center", va="center", fontsize=9)
        accuracy = np.column_stack([accuracy, np.full(len(accuracy), np.nan)])
    axes.imshow(accuracy, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(accuracy):
        if np.isfinite(value) and (row > 0 or column == 0):
            # The clean accuracy knows no severities: once, in the middle of them and their mean.
            place = column if row else len(SEVERITIES) / 2
            color = "white" if value > 60 else "black"
            axes.text(place, row, f"{value:.1f}", ha="center", va="center", color=color, fontsize=9)
    for part_off in (0.5, len(rows) - 0.5):
        axes.axhline(part_off, color="white", linewidth=4)
    axes.axvline(len(SEVERITIES) - 0.5, ymax=1 - 1 / (len(rows) + 1), color="white", linewidth=4)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(range(len(headings)), headings)
    axes.set_yticks(range(len(rows) + 1), [*map(_said, rows), "Mean"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("severity", x=len(SEVERITIES) / 2 / len(headings))
    axes.set_title(title)


def _said(name: str) -> str:
    return name.replace("_", " ").capitalize()


def plot_outliers(outliers: Outliers) -> Figure:
    """A row a score, a column a set of images outside, each with the AUROC."""
    names = list(outliers.outside)
    figure = Figure(figsize=(2.6 * len(names) + 0.6, 2.4 * len(SCORES) + 0.4), layout="constrained")
    grid = figure.subplots(len(SCORES), len(names), squeeze=False, sharex="row")
    for row, score in zip(grid, SCORES, strict=True):
        for axes, name in zip(row, names, strict=True):
            said = name.replace("_", " ").capitalize()
            plot_separation(outliers.separation(name, score), axes, title=said, score=_SCORE_LABELS[score])
        row[0].set_ylabel("share of the images (%)")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return figure


def plot_separation(result: Separation, axes: Axes, *, title: str, score: str) -> None:
    """Draw both histograms of a score over one scale."""
    ends = [(values.min().item(), values.max().item()) for values in (result.inside, result.outside)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    edges = np.linspace(low, high if high > low else low + 1, _HISTOGRAM_BINS + 1)
    for values, style in (
        (result.inside, {"color": "#BBBBBB", "label": "inside", "fill": True}),
        (result.outside, {"color": "#D55E00", "label": "outside"}),
    ):
        counts, _ = np.histogram(values.numpy(), edges)
        axes.stairs(100 * counts / len(values), edges, **style)
    axes.set(xlabel=score, title=f"{title}\nAUROC {result.auroc:.3f}")
    axes.title.set_fontsize(10)
