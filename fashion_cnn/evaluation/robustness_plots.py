"""Figures of what the corruptions do: to an image, and to a network's accuracy."""

from matplotlib.figure import Figure
from torch import Tensor

from fashion_cnn.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt


def plot_examples(image: Tensor, *, seed: int = 0) -> Figure:
    """Draw an image `(C, H, W)` uint8, of one or three channels, under every corruption at every severity."""
    names, columns = list(CORRUPTIONS), len(SEVERITIES)
    rows = -(-len(names) // 2)
    figure = Figure(figsize=(11, 0.82 * rows + 0.3), layout="constrained")
    # Two blocks side by side, an empty column between them.
    widths = [*[1] * columns, 0.6, *[1] * columns]
    grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for axes in grid[:, columns]:
        axes.set_axis_off()
    for place, name in enumerate(names):
        block, row = divmod(place, rows)
        for severity, axes in zip(SEVERITIES, grid[row, block * (columns + 1) :], strict=False):
            spoilt = corrupt(image[None], name, severity, seed=seed)[0]
            axes.imshow(spoilt.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(f"severity {severity}", fontsize=8)
            if severity == SEVERITIES[0]:
                axes.set_ylabel(_said(name), rotation=0, ha="right", va="center", fontsize=9)
    return figure


def _said(name: str) -> str:
    return name.replace("_", " ").capitalize()
