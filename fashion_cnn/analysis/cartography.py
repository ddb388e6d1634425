"""Which training images are easy, ambiguous or hard, and which labels are likely wrong.

Swayamdipta et al., "Dataset Cartography", 2020 (arXiv 2009.10795), with fixed limits in place of thirds, so that the
regions of two runs can be compared.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import fields

import torch
from matplotlib.axes import Axes
from torch import Tensor

from fashion_cnn.analysis.dynamics import Dynamics

REGIONS = ("easy", "ambiguous", "hard")
_COLORS = {"easy": "#009E73", "ambiguous": "#E69F00", "hard": "#D55E00"}
_SURE, _UNSURE, _STEADY = 0.75, 0.25, 0.25


def regions(dynamics: Dynamics) -> Tensor:
    """The region of each image as a position in `REGIONS`, `(N,)`.

    Easy: the label's probability is 0.75 or more in the mean and varies by less than 0.25. Hard: 0.25 or less, just
    as steady. All others are ambiguous.
    """
    steady = dynamics.variability < _STEADY
    region = torch.full_like(dynamics.targets, REGIONS.index("ambiguous"))
    region[steady & (dynamics.confidence >= _SURE)] = REGIONS.index("easy")
    region[steady & (dynamics.confidence <= _UNSURE)] = REGIONS.index("hard")
    return region


def likely_label_errors(dynamics: Dynamics) -> Tensor:
    """The positions of all images in `dynamics`, the likeliest label error first, `(N,)`.

    Ranked by the share of the epochs that recognised the image: one whose label is wrong looks like another class until
    the network has learned it by heart, which comes late. Among equals by the mean margin.
    """
    by_margin = dynamics.margin.argsort(stable=True)
    recognised = dynamics.recognised / dynamics.seen
    return by_margin[recognised[by_margin].argsort(stable=True)]


def table(dynamics: Dynamics, class_names: Sequence[str]) -> str:
    """All that is known of each image, as CSV, a row an image, the likeliest label error first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Dynamics)]
    writer.writerow([*names, "label", "region", "label_error_rank"])
    region, targets = regions(dynamics).tolist(), dynamics.targets.tolist()
    columns = [getattr(dynamics, name).tolist() for name in names]
    for rank, place in enumerate(likely_label_errors(dynamics).tolist(), start=1):
        values = [column[place] for column in columns]
        rounded = [round(value, 5) if isinstance(value, float) else value for value in values]
        writer.writerow([*rounded, class_names[targets[place]], REGIONS[region[place]], rank])
    return text.getvalue()


def plot_map(dynamics: Dynamics, axes: Axes, *, most: int = 10_000) -> None:
    """Draw confidence over variability, coloured by region; of more than `most` images an even sample."""
    region = regions(dynamics)
    sample = torch.arange(0, len(region), max(1, -(-len(region) // most)))
    for number, name in enumerate(REGIONS):
        shown = sample[region[sample] == number]
        share = (region == number).double().mean().item()
        axes.scatter(
            dynamics.variability[shown].numpy(),
            dynamics.confidence[shown].numpy(),
            s=4,
            alpha=0.4,
            linewidths=0,
            color=_COLORS[name],
            label=f"{name} ({share:.1%})",
        )
    axes.set(
        xlabel="variability (standard deviation of the label's probability)",
        ylabel="confidence (its mean)",
        ylim=(0, 1),
    )
    axes.legend(frameon=False, markerscale=3)
