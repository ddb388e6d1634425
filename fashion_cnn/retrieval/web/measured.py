"""What `python -m fashion_cnn.evaluate_search` found out about a run's vectors, as tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fashion_cnn.retrieval.evaluation_summary import FIGURES, FIGURES_FILE, INSTANCE_FIGURES, figure
from fashion_cnn.runs import Run

_FIGURES = {name: FIGURES[name] for name in ("precision@1", "precision@10", "precision@100", "recall@10", "mAP@100")}
_FOUND_AGAIN = INSTANCE_FIGURES["recall@10"]


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
    for file in sorted(run.search_evaluation.glob(f"*/{FIGURES_FILE}")):
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
    measured = figure(found, path)
    return f"{measured['value']:.1%}" if measured else ""
