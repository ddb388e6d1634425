"""Figure of the study: what each remedy gained, against the share of the gap before."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fashion_cnn.analysis.verdict import FEATURES, REMEDIES
from overfitting_study.analysis import Gain

SHOWN = ("longer", "larger", "cutmix", "erasing", "smoothing", "dropout", "more_decay", "shorter")


def draw(gains: Sequence[Gain]) -> Figure:
    """Draw a panel for each of SHOWN, with one point for each pair of trainings."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    place = FEATURES.index("gap_share")
    for axes, remedy in zip(panels.flat, SHOWN, strict=True):
        for label, chosen, marker in (
            ("study", [g for g in gains if g.arm == remedy and g.base >= 0], "o"),
            ("all images", [g for g in gains if g.arm == remedy and g.base < 0], "^"),
        ):
            shares = [100 * gain.features[place] for gain in chosen]
            axes.plot(shares, [100 * gain.accuracy for gain in chosen], marker, ms=4, label=label)
        mean = np.mean([100 * gain.accuracy for gain in gains if gain.arm == remedy and gain.base >= 0])
        axes.axhline(0, color="0.5", lw=0.8)
        axes.set_title(f"{REMEDIES[remedy][0]}: {mean:+.2f}", fontsize=9)
    panels[0, 0].legend(fontsize=8)
    figure.supxlabel("share of the gap in the validation error before, %")
    figure.supylabel("gain in held-out accuracy, points")
    figure.suptitle("What remedies gained (in the titles: their means in the study, in points)")
    return figure
