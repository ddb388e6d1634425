"""Robustness report of an evaluated network: accuracy on corrupted images, and detection of outliers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from fashion_cnn.evaluation.evaluate import Evaluation, Split
from fashion_cnn.evaluation.outliers import SCORES, Outliers, Separation, evaluate_outliers
from fashion_cnn.evaluation.robustness import (
    CorruptionErrors,
    Robustness,
    corruption_errors,
    evaluate_robustness,
    read_robustness,
    require_comparable,
)
from fashion_cnn.plots.style import add_subtitle, save_figure
from fashion_cnn.runs import find_finished_run, write_json

METRICS_FILE = "robustness.json"
# Result of experiment=baseline, seed 1, on the test images of Fashion-MNIST.
RECORDED_BASELINE = Path(__file__).parent / "baseline_robustness.json"
RECORDED = "experiment=baseline, as recorded"
_HISTOGRAM_BINS = 40
_SCORE_LABELS = {"confidence": "confidence", "energy": "negative energy"}


class Baseline(NamedTuple):
    """The result that others are compared with.

    Attributes:
        name: file or directory that it was read from.
        robustness: the result.
    """

    name: str
    robustness: Robustness


def read_baseline(reference: str, split: Split, runs_dir: Path) -> Baseline:
    """Read the robustness of a run, of an ensemble or of a file.

    Args:
        reference: a run (directory or `latest`), a directory that `evaluate` wrote, or a `robustness.json`.
        split: the split that was evaluated.
        runs_dir: where `latest` looks for runs.

    Raises:
        UserError: if there is no such result, or other results cannot be compared with it.
    """
    path = Path(reference).expanduser()
    candidates = (path, path / split / METRICS_FILE, path / METRICS_FILE, path / "evaluation" / split / METRICS_FILE)
    file = next((file for file in candidates if file.is_file()), None)
    if file is None:
        run = find_finished_run(reference, runs_dir)
        path, file = run.path, run.evaluation / split / METRICS_FILE
    robustness = read_robustness(file)
    require_comparable(robustness, robustness.data_sha256)
    return Baseline(str(path), robustness)


def write_robustness_report(
    evaluation: Evaluation, folder: Path, *, baseline: Baseline | None, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Evaluate the robustness of a network, and write the results and their plots into `folder`.

    Args:
        evaluation: the evaluation on clean images.
        folder: an existing directory.
        baseline: the result to compare with; None for the recorded one, which is of Fashion-MNIST's test images.
        progress: called with the number of passes over the images that are done and the total.

    Returns:
        The results, as plain values for JSON.

    Raises:
        UserError: if the baseline was evaluated on other images.
    """
    if baseline and baseline.robustness.data_sha256 != evaluation.fingerprint:
        raise UserError(f"{baseline.name} was evaluated on other images: use the same split of the same data for both.")
    network, images = evaluation.network, evaluation.images
    result = evaluate_robustness(network.logits, images, evaluation.predictions.targets, progress=progress)
    left_out = network.data.left_out_split.images if evaluation.split == "test" else None
    outliers = evaluate_outliers(network.logits, images, left_out=left_out)
    if baseline is None and (recorded := read_robustness(RECORDED_BASELINE)).data_sha256 == result.data_sha256:
        baseline = Baseline(RECORDED, recorded)
    errors = comparison = None
    if baseline:
        errors = corruption_errors(result, baseline.robustness)
        comparison = {"baseline": baseline.name, "mean": errors.mean, "by_corruption": errors.by_corruption}
    record = result.to_dict() | {"corruption_errors": comparison, "outliers": outliers.to_dict()}
    heat_map = Figure(figsize=(7.5, 6.5), layout="constrained")
    title = f"Accuracy on corrupted images of {evaluation.split}"
    heat_map.suptitle(title)
    plot_robustness(result, heat_map.subplots(), title="accuracy (%)", errors=errors)
    figures = {"robustness": heat_map, "outliers": plot_outliers(outliers)}
    for name, figure in figures.items():
        add_subtitle(figure, evaluation.title)
        save_figure(figure, folder / f"{name}.png")
    save_figure(plot_corruptions(images[0]), folder / "corruptions.png")
    write_json(folder / METRICS_FILE, record)
    return record


def plot_robustness(result: Robustness, axes: Axes, *, title: str, errors: CorruptionErrors | None = None) -> None:
    """Plot a heat map of accuracies in percent, corruptions in rows and severities in columns.

    The first row is the clean accuracy; the last row and a column on the right are means.

    Args:
        result: the accuracies.
        axes: the axes to draw on.
        title: the title.
        errors: adds a column of errors in percent of the baseline's.
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
            # The clean accuracy has no severity: it is written once, in the middle of its row.
            x = column if row else len(SEVERITIES) / 2
            color = "white" if value > 60 else "black"
            axes.text(x, row, f"{value:.1f}", ha="center", va="center", color=color, fontsize=9)
    for y in (0.5, len(rows) - 0.5):
        axes.axhline(y, color="white", linewidth=4)
    axes.axvline(len(SEVERITIES) - 0.5, ymax=1 - 1 / (len(rows) + 1), color="white", linewidth=4)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(range(len(headings)), headings)
    axes.set_yticks(range(len(rows) + 1), [*map(_title, rows), "Mean"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("severity", x=len(SEVERITIES) / 2 / len(headings))
    axes.set_title(title)


def plot_corruptions(image: Tensor) -> Figure:
    """Draw an image `(C, H, W)` uint8 under each corruption, in two blocks of rows with severities in columns."""
    rows, columns = -(-len(CORRUPTIONS) // 2), len(SEVERITIES)
    figure = Figure(figsize=(9.2, 0.69 * rows + 0.55), layout="constrained")
    figure.suptitle("An image under each corruption")
    # All images share one Axes: the layout of one Axes per image takes ten times as long.
    axes = figure.subplots()
    for number, name in enumerate(CORRUPTIONS):
        block, row = divmod(number, rows)
        start = block * (columns + 1.7)
        axes.text(start - 0.1, -row, _title(name), fontsize=9, ha="right", va="center")
        for severity in SEVERITIES:
            left = start + severity - 1
            pixels = corrupt(image[None], name, severity)[0].permute(1, 2, 0).squeeze(-1).numpy()
            extent = (left + 0.05, left + 0.95, -row - 0.45, -row + 0.45)
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent)
            if row == 0:
                axes.text(left + 0.5, 0.5, f"severity {severity}", fontsize=8, ha="center", va="bottom")
    axes.set(xlim=(-1.6, 2 * columns + 1.7), ylim=(0.5 - rows, 0.8))
    axes.set_axis_off()
    return figure


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def plot_outliers(outliers: Outliers) -> Figure:
    """Plot histograms of the scores, scores in rows and sets of outliers in columns."""
    names = list(outliers.outside)
    figure = Figure(figsize=(2.6 * len(names) + 0.6, 2.4 * len(SCORES) + 0.9), layout="constrained")
    figure.suptitle("Scores of images inside and outside of the classes")
    grid = figure.subplots(len(SCORES), len(names), squeeze=False, sharex="row")
    for row, score in zip(grid, SCORES, strict=True):
        for axes, name in zip(row, names, strict=True):
            plot_separation(outliers.separation(name, score), axes, title=_title(name), score=_SCORE_LABELS[score])
        row[0].set_ylabel("share of the images (%)")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return figure


def plot_separation(result: Separation, axes: Axes, *, title: str, score: str) -> None:
    """Plot the histograms of a score for inliers and outliers, with the AUROC in the title.

    Args:
        result: the scores.
        axes: the axes to draw on.
        title: the first line of the title.
        score: the label of the horizontal axis.
    """
    values = np.concatenate([result.inside.numpy(), result.outside.numpy()])
    low, high = values.min(), values.max()
    edges = np.linspace(low, high if high > low else low + 1, _HISTOGRAM_BINS + 1)
    for scores, style in (
        (result.inside, {"color": "#BBBBBB", "label": "inside", "fill": True}),
        (result.outside, {"color": "#D55E00", "label": "outside"}),
    ):
        counts, _ = np.histogram(scores.numpy(), edges)
        axes.stairs(100 * counts / len(scores), edges, **style)
    axes.set(xlabel=score, title=f"{title}\nAUROC {result.auroc:.3f}")
    axes.title.set_fontsize(10)
