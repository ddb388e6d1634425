"""What `python -m fashion_cnn.evaluate_search` found, as rows of a table."""

import json
from collections.abc import Iterator
from typing import Any

from fashion_cnn.runs import Run

_MOST_ROWS = 60


def measured(run: Run) -> list[tuple[str, str]] | None:
    """The names and values of all that was measured; None where nothing was, or it cannot be read."""
    try:
        measures = json.loads((run.path / "search_evaluation" / "measures.json").read_text())
    except (OSError, ValueError):
        return None
    return list(_rows(measures))[:_MOST_ROWS]


def _rows(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _rows(inner, f"{name} · {key}" if name else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, inner in enumerate(value, start=1):
            yield from _rows(inner, f"{name} {number}")
    else:
        yield name, f"{value:.4g}" if isinstance(value, float) else str(value)
