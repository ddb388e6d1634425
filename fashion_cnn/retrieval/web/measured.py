"""What `python -m fashion_cnn.evaluate_search` found out about a run's vectors, as tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fashion_cnn.runs import Run

# By heading, where a figure stands among the measures of a search, and of finding an altered copy again.
_SEARCH = {
    "precision@1": ("precision", "1"),
    "precision@10": ("precision", "10"),
    "precision@100": ("precision", "100"),
    "mAP@100": ("map_at_100",),
}
_INSTANCES = {"recall@1": ("recall", "1"), "recall@10": ("recall", "10")}


@dataclass(frozen=True)
class Measures:
    """rows: whose vectors, and each figure in percent; nothing where it was not measured."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def measured(run: Run) -> list[Measures]:
    """All that was measured; what cannot be read is left out."""
    tables = []
    for file in sorted((run.path / "search_evaluation").glob("*/measures.json")):
        try:
            stored = json.loads(file.read_text())
            among = f"{stored['queries']:,} images of {file.parent.name} among {stored['catalogue']:,} products"
            for name, by_vectors in stored["searches"].items():
                overall = {whose: found["overall"] for whose, found in by_vectors.items()}
                tables.append(_table(f"Of the same class, {name}: {among}", overall, _SEARCH))
            for name, by_vectors in stored["instances"].items():
                tables.append(
                    _table(f"The same product in an altered picture, {name}: {among}", by_vectors, _INSTANCES)
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return tables


def _table(caption: str, by_vectors: Mapping[str, Any], figures: Mapping[str, Sequence[str]]) -> Measures:
    rows = ((whose, tuple(_percent(found, path) for path in figures.values())) for whose, found in by_vectors.items())
    return Measures(caption, tuple(figures), tuple(rows))


def _percent(found: Any, path: Sequence[str]) -> str:
    for key in path:
        found = found.get(key) if found else None
    return f"{found['value']:.1%}" if found else ""
