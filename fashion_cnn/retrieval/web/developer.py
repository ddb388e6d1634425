"""Content of the developer's page: the latency chart, and tables of `python -m fashion_cnn.evaluate_search`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fashion_cnn.retrieval.evaluation import INSTANCE_METRICS, METRICS, METRICS_FILE, stored_metric
from fashion_cnn.runs import Run

_EDGES = (0, 2, 4, 6, 8, 10, 15, 20, 30, 40, 60, 100, float("inf"))
_FIGURES = {name: METRICS[name] for name in ("precision@1", "precision@10", "precision@100", "recall@10", "mAP@100")}
_FOUND_AGAIN = INSTANCE_METRICS["recall@10"]


@dataclass(frozen=True)
class Bar:
    """low: where its range begins, in milliseconds; high: where it ends, None where it does not. height: 0 to 1, of the
    highest bar.
    """

    low: float
    high: float | None
    count: int
    height: float


def histogram(milliseconds: Sequence[float]) -> list[Bar]:
    """How many took how long."""
    counts = [sum(low <= value < high for value in milliseconds) for low, high in pairwise(_EDGES)]
    highest = max(counts, default=0) or 1
    ends = (*_EDGES[1:-1], None)
    return [Bar(low, high, count, count / highest) for low, high, count in zip(_EDGES[:-1], ends, counts, strict=True)]


@dataclass(frozen=True)
class Measures:
    """heading: of the rows' names. rows: a name, and each column's figure in percent; nothing where there is none."""

    caption: str
    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def measured(run: Run) -> list[Measures]:
    """All that was measured; what cannot be read is left out."""
    tables = []
    for file in sorted(run.search_evaluation.glob(f"*/{METRICS_FILE}")):
        try:
            tables += _tables(json.loads(file.read_text()), file.parent.name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return tables


def _tables(stored: Mapping[str, Any], split: str) -> list[Measures]:
    weighed = f", {stored['class_weight']:.0%} of a similarity by class" if stored.get("class_weight") else ""
    among = f"{stored['queries']:,} images of {split} among {stored['catalogue']:,} of its data set{weighed}"
    tables = []
    for name, by_vectors in stored["searches"].items():
        rows = tuple(
            (whose, tuple(_percent(found["overall"], path) for path in _FIGURES.values()))
            for whose, found in by_vectors.items()
        )
        tables.append(Measures(f"Of the same class ({name}): {among}", "Vectors of", tuple(_FIGURES), rows))
    if altered := stored["instances"]:
        whose = tuple(next(iter(altered.values())))
        rows = tuple(
            (how.replace("_", " "), tuple(_percent(by_vectors[one], _FOUND_AGAIN) for one in whose))
            for how, by_vectors in altered.items()
        )
        tables.append(
            Measures("The product itself, of an altered picture, among the first 10", "Altered by", whose, rows)
        )
    return tables


def _percent(found: Any, path: Sequence[str]) -> str:
    measured = stored_metric(found, path)
    return f"{measured['value']:.1%}" if measured else ""
