"""What several runs' searches come to: the mean over the runs, and how far they are apart."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Figures = dict[str, tuple[str, ...]]
# In a folder a split of `Run.search_evaluation`: the stored measures of one run.
FIGURES_FILE = "measures.json"
# By name, where a figure stands among the stored measures of a search.
FIGURES: Figures = {
    "precision@1": ("precision", "1"),
    "precision@10": ("precision", "10"),
    "precision@100": ("precision", "100"),
    "recall@10": ("recall", "10"),
    "mAP@100": ("map_at_100",),
    "mAP@R": ("map_at_r",),
}
INSTANCE_FIGURES: Figures = {"recall@1": ("recall", "1"), "recall@10": ("recall", "10")}


def figure(measures: dict[str, Any], path: Sequence[str]) -> dict[str, float] | None:
    """The mean with its interval that stands at `path` in stored measures; None where a list was too short for it."""
    found: dict[str, Any] | None = measures
    for key in path:
        found = found.get(key) if found else None
    return found


def summary_of(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation (null of a single run) and values over stored outcomes, by search, vectors and figure.

    Vectors that not all runs were measured by are left out.
    """
    searches: dict[str, Any] = {}
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome["searches"]):
        found = [outcome["searches"][name] for outcome in outcomes if name in outcome["searches"]]
        measured = [{whose: search["overall"] for whose, search in one.items()} for one in found]
        searches[name] = {
            "chance": statistics.fmean(next(iter(one.values()))["chance"] for one in found),
            "by_vectors": _over_runs(measured, FIGURES),
        }
    return {
        "runs": [outcome["run"] for outcome in outcomes],
        "unseen": [outcome["unseen"] for outcome in outcomes],
        "split": outcomes[0]["split"],
        "accuracy": _spread(outcome["accuracy"]["value"] for outcome in outcomes if outcome["accuracy"]),
        "searches": searches,
        "instances": {
            name: _over_runs([outcome["instances"][name] for outcome in outcomes], INSTANCE_FIGURES)
            for name in outcomes[0]["instances"]
        },
    }


def _over_runs(measured: Sequence[dict[str, Any]], figures: Figures) -> dict[str, Any]:
    """By whose vectors, each figure over the runs; `measured`: of each run, measures by whose vectors."""
    return {
        whose: {
            name: _spread(found["value"] for of in measured if (found := figure(of[whose], path)))
            for name, path in figures.items()
        }
        for whose in measured[0]
        if all(whose in of for of in measured)
    }


def _spread(values: Iterable[float]) -> dict[str, Any] | None:
    seen = list(values)
    if not seen:
        return None
    deviation = statistics.stdev(seen) if len(seen) > 1 else None
    return {"mean": statistics.fmean(seen), "deviation": deviation, "values": seen}
