"""Plots of memorisation: histogram, share of the gap, memorised images and what they buy, label errors, duplicates."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fashion_cnn.analysis.memorisation import SHARES, Answers, Duplicates, LabelErrors, Scores
from fashion_cnn.metrics.memorisation import Decomposition
from fashion_cnn.plots.style import LINE_COLORS, escape_label, figure_inches, plot_thumbnails

_PERCENT = 100
# Number of images in a grid, and test images beside each memorised image.
_GRID = 40
_MEMORISED_ROWS = 8
_BOUGHT = 5
_MAX_NAME = 12


def plot_scores(scores: Scores, *, memorised: float) -> Figure:
    """Draw the histogram of the memorisation scores, and the part of the gap that the most memorised images carry.

    Args:
        scores: the scores.
        memorised: score from which an image counts as memorised.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle("Memorisation of the training images")
    known = scores.score[np.isfinite(scores.score)]
    left.hist(known, bins=np.linspace(-1, 1, 81), color=LINE_COLORS[0])
    left.axvline(memorised, color="black", linewidth=0.8, linestyle=":", label=f"memorised: {memorised:g} and above")
    left.set(yscale="log", xlabel="memorisation score", ylabel="training images", title="Histogram")
    left.legend(frameon=False)
    left.grid(alpha=0.3)
    ranked = np.sort(known)[::-1]
    share = np.arange(1, len(ranked) + 1) / len(ranked) * _PERCENT
    total = ranked.sum()
    if total > 0:
        right.plot(share, np.cumsum(ranked) / total * _PERCENT, color=LINE_COLORS[0], label="ranked by the same runs")
    if scores.shares:
        right.plot(
            np.array(SHARES) * _PERCENT,
            np.array(scores.shares) * _PERCENT,
            "o",
            color=LINE_COLORS[1],
            label="ranked by one half of the runs, measured by the other",
        )
    right.set(
        xscale="log",
        xlabel="most memorised images (% of all)",
        ylabel="share of the gap (%)",
        title="Who carries the gap",
    )
    if right.get_legend_handles_labels()[0]:  # Networks without a gap have no curve.
        right.legend(frameon=False, fontsize="small", loc="upper left")
    right.grid(alpha=0.3, which="both")
    return figure


def plot_class_shares(scores: Scores, class_names: Sequence[str]) -> Figure:
    """Draw the share of the gap of each class."""
    figure = Figure(figsize=(8, figure_inches(len(class_names), margin=1.6)), layout="constrained")
    axes = figure.subplots()
    figure.suptitle("Share of the gap by class")
    order = np.argsort(scores.class_shares)
    names = [escape_label(class_names[label]) for label in order]
    bars = axes.barh(names, scores.class_shares[order] * _PERCENT, color=LINE_COLORS[0])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlabel("share of the gap (%): sum of the memorisation scores of the class")
    axes.margins(x=0.1)
    axes.grid(axis="x", alpha=0.3)
    return figure


def plot_bought_images(
    answers: Answers, scores: Scores, train: Tensor, test: Tensor, *, rows: int = _MEMORISED_ROWS
) -> Figure | None:
    """Draw memorised images, each beside the test images that it helps most; None if no influence is significant.

    Args:
        answers: of the networks.
        scores: computed from them.
        train: `(N, C, H, W)` uint8, the training images.
        test: `(M, C, H, W)` uint8.
        rows: number of memorised images, those of the largest influences.
    """
    found = scores.influences
    if found is None or not (found.values > 0).any():
        return None
    helpful = np.flatnonzero(found.values > 0)
    chosen = list(dict.fromkeys(found.rows[helpful].tolist()))[:rows]
    names = answers.class_names
    columns = max(min(_BOUGHT, int((found.rows[helpful] == row).sum())) for row in chosen)
    # At least as wide as the title.
    width = max(columns, 3)
    figure = Figure(figsize=(1.9 * (width + 1), 2.1 * len(chosen) + 0.6), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(chosen):
        image = int(scores.tested[row])
        cells = [
            (
                train[image],
                f"{_short(names[answers.targets[image]])}\nmemorised {scores.score[image]:.2f}\n"
                f"training image {answers.indices[image]}",
            )
        ]
        for place in helpful[found.rows[helpful] == row][:_BOUGHT]:
            other = int(found.tests[place])
            caption = (
                f"{_short(names[answers.test_targets[other]])}\ninfluence {found.values[place]:+.2f}\n"
                f"test image {answers.test_indices[other]}"
            )
            cells.append((test[other], caption))
        for column, (pixels, caption) in enumerate(cells):
            # A gap separates the training image from the test images.
            left, bottom = column + 0.05 + (0.2 if column else 0), -1.35 * number
            extent = (left, left + 0.9, bottom, bottom + 0.9)
            axes.imshow(pixels.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, extent=extent)
            axes.text(left + 0.45, bottom + 0.93, escape_label(caption), fontsize=8, ha="center", va="bottom")
    axes.set(xlim=(0, width + 1.25), ylim=(-1.35 * (len(chosen) - 1), 1.35))
    axes.set_axis_off()
    figure.suptitle("Memorised training images (left) and the test images that each one buys")
    return figure


def plot_memorised(answers: Answers, scores: Scores, train: Tensor) -> Figure:
    """Draw the most memorised training images, with the class that other networks predict."""
    order = np.argsort(-np.nan_to_num(scores.score, nan=-1), kind="stable")[:_GRID]
    predicted = answers.out_of_sample.argmax(axis=1)
    names = answers.class_names
    captions = [
        f"{_short(names[answers.targets[row]])}\n{scores.score[row]:.2f}, others say\n{_short(names[predicted[row]])}"
        for row in order
    ]
    return plot_thumbnails(train[order], captions, title="Most memorised training images: label, score, other networks")


def plot_label_errors(answers: Answers, errors: LabelErrors, train: Tensor) -> Figure | None:
    """Draw the likely label errors with the class proposed, most probable first; None if there are none."""
    order = np.argsort(-errors.probability, kind="stable")[:_GRID]
    order = order[errors.probability[order] > 0]
    if not len(order):
        return None
    names = answers.class_names
    captions = [
        f"{_short(names[answers.targets[row]])} →\n{_short(names[errors.proposed[row]])}\n"
        f"{errors.probability[row]:.0%}, image {answers.indices[row]}"
        for row in order
    ]
    return plot_thumbnails(train[order], captions, title="Likely label errors: label → class proposed, probability")


def plot_test_images(answers: Answers, parts: Decomposition, test: Tensor) -> Figure:
    """Draw the test images of highest variance, and those that nearly every network gets wrong in the same way."""
    assert answers.tests is not None
    main = answers.tests.votes.argmax(axis=1)
    half = _GRID // 2
    varying = np.argsort(-parts.variance, kind="stable")[:half]
    # Wrong for all in the same way: bias, or a wrong label.
    biased = np.argsort(-(parts.bias - parts.variance), kind="stable")[:half]
    names = answers.class_names
    captions = [
        f"{_short(names[answers.test_targets[row]])}\nmain: {_short(names[main[row]])}\n"
        f"bias {parts.bias[row]:.0f}, variance {parts.variance[row]:.2f}"
        for row in (*varying, *biased)
    ]
    title = "Test images of highest variance (first half), and of bias with the lowest variance"
    return plot_thumbnails(test[np.concatenate([varying, biased])], captions, title=title, columns=5)


def plot_duplicates(answers: Answers, duplicates: Duplicates, train: Tensor, test: Tensor) -> Figure | None:
    """Draw test images beside their most similar training images; None without near-duplicates."""
    count = min(len(duplicates.tests), _GRID // 2)
    if not count:
        return None
    names = answers.class_names
    images, captions = [], []
    for number in range(count):
        other, row = int(duplicates.tests[number]), int(duplicates.rows[number])
        images += [test[other], train[row]]
        captions += [
            f"test {answers.test_indices[other]}\n{_short(names[answers.test_targets[other]])}",
            f"training {answers.indices[row]}, {duplicates.similarity[number]:.4f}\n"
            f"{_short(names[answers.targets[row]])}",
        ]
    title = "Near-duplicates: test image, most similar training image, correlation of the pixels"
    return plot_thumbnails(torch.stack(images), captions, title=title)


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"
