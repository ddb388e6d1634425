"""Plots of memorisation scores, shares of the gap, influences, label errors, test images and near-duplicates."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fashion_cnn.analysis.memorisation import TOP_FRACTIONS, Duplicates, LabelErrors, Scores, SubsetEnsemble
from fashion_cnn.metrics.memorisation import Decomposition
from fashion_cnn.plots.style import LINE_COLORS, escape_label, figure_inches, plot_thumbnails

_PERCENT = 100
# Number of images in a grid.
_GRID = 36
# Memorised images in the plot of influences, and maximum number of test images beside each.
_INFLUENCE_ROWS, _INFLUENCE_COLUMNS = 9, 5
# Maximum length of a class name, in characters.
_MAX_NAME = 12


def plot_scores(scores: Scores, *, threshold: float) -> Figure:
    """Draw the histogram of the memorisation scores, and the share of the gap of the most memorised images.

    Args:
        scores: memorisation scores.
        threshold: score from which an image counts as memorised.

    Returns:
        The figure with two axes.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle("Memorisation of the training images")
    finite = scores.score[np.isfinite(scores.score)]
    left.hist(finite, bins=np.linspace(-1, 1, 81), color=LINE_COLORS[0])
    left.axvline(threshold, color="black", linewidth=0.8, linestyle=":", label=f"memorised: {threshold:g} and above")
    left.set_xlim(min(-0.1, float(finite.min(initial=0.0))), 1.02)
    left.set(yscale="log", xlabel="memorisation score", ylabel="training images", title="Distribution of the scores")
    left.legend(frameon=False)
    left.grid(alpha=0.3)
    ranked = np.sort(finite)[::-1]
    top = np.arange(1, len(ranked) + 1) / len(ranked) * _PERCENT
    total = ranked.sum()
    if total > 0:
        right.plot(top, np.cumsum(ranked) / total * _PERCENT, color=LINE_COLORS[0], label="ranked by the same runs")
    if scores.gap_shares:
        right.plot(
            np.array(TOP_FRACTIONS) * _PERCENT,
            np.array(scores.gap_shares) * _PERCENT,
            "o",
            color=LINE_COLORS[1],
            label="ranked and measured by different halves of the runs",
        )
    right.set(
        xscale="log",
        xlabel="most memorised images (% of all)",
        ylabel="share of the gap (%)",
        title="Share of the gap of the most memorised images",
    )
    if right.get_legend_handles_labels()[0]:  # Without a gap there is no curve.
        right.legend(frameon=False, fontsize="small", loc="upper left")
    right.grid(alpha=0.3, which="both")
    return figure


def plot_class_shares(scores: Scores, class_names: Sequence[str]) -> Figure:
    """Draw a bar for the share of the gap of each class, in percent."""
    figure = Figure(figsize=(8, figure_inches(len(class_names), margin=1.6)), layout="constrained")
    axes = figure.subplots()
    figure.suptitle("Share of the gap by class")
    order = np.argsort(scores.class_shares)
    names = [escape_label(class_names[label]) for label in order]
    bars = axes.barh(names, scores.class_shares[order] * _PERCENT, color=LINE_COLORS[0])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlabel("share of the gap (%)")
    axes.margins(x=0.1)
    axes.grid(axis="x", alpha=0.3)
    return figure


def plot_influences(
    ensemble: SubsetEnsemble, scores: Scores, train: Tensor, test: Tensor, *, rows: int = _INFLUENCE_ROWS
) -> Figure | None:
    """Draw memorised training images, each beside the test images on which its influence is largest.

    Args:
        ensemble: networks trained on subsets.
        scores: memorisation scores and influences.
        train: `(N, C, H, W)` uint8, training images.
        test: `(M, C, H, W)` uint8, test images.
        rows: maximum number of training images, those with the largest influences.

    Returns:
        The figure; None if no positive influence is significant.
    """
    influences = scores.influences
    if influences is None or not (influences.values > 0).any():
        return None
    helpful = np.flatnonzero(influences.values > 0)
    chosen = list(dict.fromkeys(influences.train_rows[helpful].tolist()))[:rows]
    names = ensemble.class_names
    columns = max(min(_INFLUENCE_COLUMNS, int((influences.train_rows[helpful] == row).sum())) for row in chosen)
    # Several training images stand side by side if they have few test images each.
    across = min(len(chosen), max(1, (_INFLUENCE_COLUMNS + 1) // (columns + 1)))
    lines = -(-len(chosen) // across)
    # The title needs four columns.
    width = max(across * (columns + 1.5), 4)
    figure = Figure(figsize=(1.9 * width, 2.1 * lines + 0.6), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(chosen):
        image = int(scores.tested[row])
        cells = [
            (
                train[image],
                f"{_short(names[ensemble.targets[image]])}\nmemorised {scores.score[image]:.2f}\n"
                f"training image {ensemble.indices[image]}",
            )
        ]
        for place in helpful[influences.train_rows[helpful] == row][:_INFLUENCE_COLUMNS]:
            other = int(influences.test_rows[place])
            caption = (
                f"{_short(names[ensemble.test_targets[other]])}\ninfluence {influences.values[place]:+.2f}\n"
                f"test image {ensemble.test_indices[other]}"
            )
            cells.append((test[other], caption))
        line, place_in_line = divmod(number, across)
        for column, (pixels, caption) in enumerate(cells):
            # Space between the training image and the test images.
            left = place_in_line * (columns + 1.5) + column + 0.05 + (0.2 if column else 0)
            bottom = -1.35 * line
            extent = (left, left + 0.9, bottom, bottom + 0.9)
            axes.imshow(pixels.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, extent=extent)
            axes.text(left + 0.45, bottom + 0.93, escape_label(caption), fontsize=8, ha="center", va="bottom")
    axes.set(xlim=(0, width), ylim=(-1.35 * (lines - 1), 1.35))
    axes.set_axis_off()
    figure.suptitle("Memorised training images (left) and the test images that they influence most")
    return figure


def plot_memorised(ensemble: SubsetEnsemble, scores: Scores, train: Tensor) -> Figure:
    """Draw the most memorised training images `(N, C, H, W)` with label, score and out-of-sample prediction."""
    order = np.argsort(-np.nan_to_num(scores.score, nan=-1), kind="stable")[:_GRID]
    predicted = ensemble.out_of_sample.argmax(axis=1)
    names = ensemble.class_names
    captions = [
        f"{_short(names[ensemble.targets[row]])}\n{scores.score[row]:.2f}, predicted\n{_short(names[predicted[row]])}"
        for row in order
    ]
    return plot_thumbnails(
        train[order], captions, title="Most memorised training images: label, score, out-of-sample prediction"
    )


def plot_label_errors(ensemble: SubsetEnsemble, errors: LabelErrors, train: Tensor) -> Figure | None:
    """Draw the likely label errors with the proposed class, most probable first; None if there are none."""
    order = np.argsort(-errors.probability, kind="stable")[:_GRID]
    order = order[errors.probability[order] > 0]
    if not len(order):
        return None
    names = ensemble.class_names
    captions = [
        f"{_short(names[ensemble.targets[row]])} →\n{_short(names[errors.proposed[row]])}\n"
        f"{errors.probability[row]:.0%}, image {ensemble.indices[row]}"
        for row in order
    ]
    return plot_thumbnails(
        train[order], captions, title="Likely label errors: given label → proposed class, probability"
    )


def plot_test_images(ensemble: SubsetEnsemble, parts: Decomposition, test: Tensor) -> Figure:
    """Draw the test images with the highest variance, and those that nearly all networks misclassify alike."""
    assert ensemble.test_totals is not None
    main = ensemble.test_totals.votes.argmax(axis=1)
    half = _GRID // 2
    varying = np.argsort(-parts.variance, kind="stable")[:half]
    # High bias and low variance: all networks make the same error, or the label is wrong.
    biased = np.argsort(-(parts.bias - parts.variance), kind="stable")[:half]
    names = ensemble.class_names
    captions = [
        f"{_short(names[ensemble.test_targets[row]])}\nmain: {_short(names[main[row]])}\n"
        f"bias {parts.bias[row]:.0f}, variance {parts.variance[row]:.2f}"
        for row in (*varying, *biased)
    ]
    title = "Test images with the highest variance (first half), and biased ones with the lowest variance"
    return plot_thumbnails(test[np.concatenate([varying, biased])], captions, title=title, columns=5)


def plot_duplicates(ensemble: SubsetEnsemble, duplicates: Duplicates, train: Tensor, test: Tensor) -> Figure | None:
    """Draw near-duplicates: test images beside their most similar training images; None without any."""
    count = min(len(duplicates.test_rows), _GRID // 2)
    if not count:
        return None
    names = ensemble.class_names
    images, captions = [], []
    for number in range(count):
        other, row = int(duplicates.test_rows[number]), int(duplicates.train_rows[number])
        images += [test[other], train[row]]
        captions += [
            f"test {ensemble.test_indices[other]}\n{_short(names[ensemble.test_targets[other]])}",
            f"training {ensemble.indices[row]}, {duplicates.similarity[number]:.4f}\n"
            f"{_short(names[ensemble.targets[row]])}",
        ]
    title = "Near-duplicates: test image, most similar training image, correlation of the pixels"
    return plot_thumbnails(torch.stack(images), captions, title=title)


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"
