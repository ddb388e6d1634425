"""The measures of a search drawn, from stored values: precision by class, and along the list."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fashion_cnn.metrics.ranking import NETWORK
from fashion_cnn.plots.style import escape_label, last_rows

# Whose vectors stand beside the network's, class by class.
_BESIDE = "pixels, cosine"


def plot_precision_by_class(found: Mapping[str, Any], axes: Axes, *, title: str) -> None:
    """Draw precision@1 of each class with its 95% interval, by the network and by pixels; the worst class on top.

    found: by whose vectors, a `LabelledSearchMetrics` as stored.
    """
    by_network = found[NETWORK]["by_class"]
    best_first = sorted(by_network, key=lambda name: by_network[name]["precision"]["1"]["value"], reverse=True)
    names = last_rows(best_first, axes)
    shown = [name for name in (NETWORK, _BESIDE) if name in found]
    for color, offset, whose in zip(("C0", "C7"), (0.12, -0.12), shown, strict=False):
        shares = [found[whose]["by_class"][name]["precision"]["1"] for name in names]
        values, lows, highs = (np.array([share[part] for share in shares]) * 100 for part in ("value", "low", "high"))
        places = np.arange(len(names)) + offset
        axes.errorbar(
            values, places, xerr=[values - lows, highs - values], fmt="o", color=color, capsize=3, label=whose
        )
    axes.set_yticks(range(len(names)), [*map(escape_label, names)])
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="precision@1, % (bars: 95% intervals)", title=title)
    axes.legend(frameon=False, loc="lower left")


def plot_curves(found: Mapping[str, Any], axes: Axes, *, title: str) -> None:
    """Draw precision@k over k, by whose vectors it is; dashed: a random order."""
    for number, (whose, search) in enumerate(found.items()):
        curve = search["overall"]["curve"]
        axes.plot(range(1, len(curve) + 1), np.array(curve) * 100, color=f"C{number}", label=whose)
    chance = next(iter(found.values()))["chance"] * 100
    axes.axhline(chance, color="0.5", linestyle="--", linewidth=1, label="chance")
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.grid(alpha=0.3)
    axes.set(xlabel="k", ylabel="precision@k, %", title=title)
    axes.legend(frameon=False, fontsize=8)
