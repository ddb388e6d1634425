"""Content of the developer page: latency of recent searches, a map of the products, and search evaluation results."""

import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.runs import Run
from fashion_cnn.runs.damage import MAX_RESULTS_BYTES, read_text

DECODING = "decode"
STAGES = (DECODING, "embed", "search", "attributes and thumbnails")
TOTAL = "total"
_HISTOGRAM_EDGES = (0, 2, 4, 6, 8, 10, 15, 20, 30, 40, 60, 100, float("inf"))
_MAX_POINTS = 2000
# Maximum number of categories on the map: more colours would be hard to distinguish.
_MAX_COLOURS = 10
OTHERS = "all others"
_METRICS = ("precision@1", "precision@10", "precision@100", "recall@10", "mAP@100")


@contextmanager
def timed(milliseconds: dict[str, float], stage: str) -> Iterator[None]:
    """Store the duration of the block in `milliseconds[stage]`."""
    start = time.perf_counter()
    yield
    milliseconds[stage] = (time.perf_counter() - start) * 1000


@dataclass(frozen=True)
class Percentiles:
    """Median and 95th percentile of a stage's latency in milliseconds, over `count` searches."""

    stage: str
    count: int
    p50: float
    p95: float


class Latencies:
    """Latencies in milliseconds of the most recent searches, by stage.

    Args:
        size: number of searches that are kept.
    """

    def __init__(self, size: int = 2000) -> None:
        self._by_stage: dict[str, deque[float]] = {stage: deque(maxlen=size) for stage in (*STAGES, TOTAL)}

    def add(self, milliseconds: Mapping[str, float]) -> None:
        """Add a search, given the duration of each of its stages."""
        for stage, value in milliseconds.items():
            self._by_stage[stage].append(value)
        self._by_stage[TOTAL].append(sum(milliseconds.values()))

    def totals(self) -> list[float]:
        """Return the total latency of each search."""
        return list(self._by_stage[TOTAL])

    def percentiles(self) -> list[Percentiles]:
        """Return the percentiles of each stage that took place in any search, the total last."""
        return [
            Percentiles(stage, len(values), *(values[int(share * len(values))] for share in (0.5, 0.95)))
            for stage, values in ((stage, sorted(ring)) for stage, ring in self._by_stage.items())
            if values
        ]


@dataclass(frozen=True)
class Bar:
    """A bar of the latency histogram.

    Attributes:
        low: start of its range in milliseconds.
        high: end of its range; None for the last bar, which has none.
        count: number of searches.
        height: as a fraction of the highest bar.
    """

    low: float
    high: float | None
    count: int
    height: float


def histogram(milliseconds: Sequence[float]) -> list[Bar]:
    """Count latencies (milliseconds) in fixed ranges."""
    counts = [sum(low <= value < high for value in milliseconds) for low, high in pairwise(_HISTOGRAM_EDGES)]
    highest = max(counts, default=0) or 1
    ends = (*_HISTOGRAM_EDGES[1:-1], None)
    bars = zip(_HISTOGRAM_EDGES[:-1], ends, counts, strict=True)
    return [Bar(low, high, count, count / highest) for low, high, count in bars]


@dataclass(frozen=True)
class Projection:
    """Products on a plane.

    Attributes:
        points: coordinates `(x, y)` in [0, 1] of some products by category, the largest category first.
        explained: fraction of the variance that the plane explains.
        sampled: number of products on it.
    """

    points: dict[str, tuple[tuple[float, float], ...]]
    explained: float
    sampled: int


def project(snapshot: Snapshot) -> Projection:
    """Project a random sample of at most 2,000 products on their first two principal components.

    The sample is the same in each call.
    """
    if not len(snapshot):
        return Projection({}, 0.0, 0)
    count = min(len(snapshot), _MAX_POINTS)
    sample = np.random.default_rng(0).permutation(len(snapshot))[:count].tolist()
    categories = snapshot.attributes["category"].to_pylist()
    vectors = snapshot.vectors_of(sample)
    centred = vectors - vectors.mean(axis=0)
    _, singular_values, axes = np.linalg.svd(centred, full_matrices=False)
    coordinates = centred @ axes[:2].T
    if coordinates.shape[1] < 2:  # a single product, or vectors with one dimension
        coordinates = np.pad(coordinates, ((0, 0), (0, 2 - coordinates.shape[1])))
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    coordinates = (coordinates - low) / (high - low).clip(min=1e-12)
    largest = [name for name, _ in Counter(categories).most_common(_MAX_COLOURS)]
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in (*largest, OTHERS)}
    for row, (x, y) in zip(sample, coordinates.tolist(), strict=True):
        points[categories[row] if categories[row] in points else OTHERS].append((x, y))
    variances = singular_values**2
    explained = float(variances[:2].sum() / variances.sum().clip(min=1e-12))
    return Projection({name: tuple(group) for name, group in points.items() if group}, explained, len(sample))


@dataclass(frozen=True)
class MetricTable:
    """A table of search metrics.

    Attributes:
        caption: what was evaluated.
        heading: heading of the first column.
        columns: headings of the other columns.
        rows: name and formatted percentages of each row; an empty string where a metric is missing.
    """

    caption: str
    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def evaluation_tables(run: Run) -> list[MetricTable]:
    """Create the tables of all results of `python -m fashion_cnn.evaluate_search`; damaged files are skipped."""
    if not run.search_evaluation.is_dir():
        return []
    # Only here: a server without torch has no such results.
    from fashion_cnn.retrieval.evaluation import METRICS_FILE

    tables = []
    for file in sorted(run.search_evaluation.glob(f"*/{METRICS_FILE}")):
        try:
            tables += _tables(json.loads(read_text(file, MAX_RESULTS_BYTES)), file.parent.name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return tables


def _tables(stored: Mapping[str, Any], split: str) -> list[MetricTable]:
    from fashion_cnn.retrieval.evaluation import INSTANCE_METRICS, METRICS

    paths = {name: METRICS[name] for name in _METRICS}
    weight = f", class weight {stored['class_weight']:.0%}" if stored.get("class_weight") else ""
    size = f"{stored['queries']:,} {split} images as queries, {stored['catalogue']:,} images in the catalogue{weight}"
    tables = []
    for name, by_embedding in stored["searches"].items():
        rows = tuple(
            (embedding, tuple(_percent(metrics["overall"], path) for path in paths.values()))
            for embedding, metrics in by_embedding.items()
        )
        tables.append(MetricTable(f"Same-class retrieval ({name}): {size}", "Embedding", _METRICS, rows))
    if instances := stored["instances"]:
        embeddings = tuple(next(iter(instances.values())))
        rows = tuple(
            (
                corruption.replace("_", " "),
                tuple(_percent(metrics[name], INSTANCE_METRICS["recall@10"]) for name in embeddings),
            )
            for corruption, metrics in instances.items()
        )
        caption = "Instance retrieval: recall@10 of the same product from a corrupted picture"
        tables.append(MetricTable(caption, "Corruption", embeddings, rows))
    return tables


def _percent(metrics: dict[str, Any], path: Sequence[str]) -> str:
    from fashion_cnn.retrieval.evaluation import stored_metric

    metric = stored_metric(metrics, path)
    return f"{metric['value']:.1%}" if metric else ""
