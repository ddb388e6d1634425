"""Vector index for approximate search in large catalogues, with its measured recall.

The index is an inverted file of vectors quantised to one byte per component (LanceDB's IVF_SQ, cosine), a quarter of
the size of the vectors. It yields four times as many candidates as requested, which are ranked by their exact cosines,
so that scores equal those of an exact search. LanceDB's default, product quantisation without that refinement, had a
recall of 4% for the nearest 12 among 60,000 vectors of Fashion-MNIST (docs/search.md).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
from lancedb.index import IvfSq
from numpy.typing import ArrayLike, NDArray

from fashion_cnn.retrieval.catalogue import index_names
from fashion_cnn.retrieval.filters import Condition

# Number of candidates per requested product that are ranked by their exact cosine.
_REFINE_FACTOR = 4
# Numbers of probed lists to try: the smallest that reaches the target recall is used.
_PROBES = (8, 16, 32, 64, 128)
_TARGET_RECALL = 0.99
# Recall at this k is measured on this number of products.
_TOP_K, _SAMPLE_SIZE = 12, 200
# Rows that are compared with that sample at once.
_SCAN_ROWS = 4096
_METADATA_KEY = "approximate"


@dataclass(frozen=True)
class VectorIndex:
    """Recall and settings of a vector index, as stored with the catalogue.

    Attributes:
        recall: mean share of the exact nearest 12 that the index finds without filters, in [0, 1].
        probes: number of lists that a search scans at least.
        sample: number of products that the recall was measured on.
        products: number of products in the catalogue at that time.
    """

    recall: float
    probes: int
    sample: int
    products: int


def vector_index_of(table: Any) -> VectorIndex | None:
    """Return the vector index of a LanceDB table; None if it has none and is searched exactly."""
    stored = (table.schema.field("vector").metadata or {}).get(_METADATA_KEY.encode())
    return VectorIndex(**json.loads(stored)) if stored and index_names(table, "vector") else None


def update_vector_index(table: Any, above: int | None) -> VectorIndex | None:
    """Create, measure or drop the vector index of a table, depending on its number of products.

    LanceDB scans products that were added after the index was built beside it, until `optimize` merges them.

    Args:
        table: a LanceDB table of products.
        above: number of products above which there is an index; None or 0 for never.

    Returns:
        The index with its recall; None without one.
    """
    if not above or table.count_rows() <= above:
        for name in index_names(table, "vector"):
            table.drop_index(name)
        return None
    if not index_names(table, "vector"):
        table.create_index("vector", config=IvfSq(distance_type="cosine"))
    index = _measure(table)
    table.update_field_metadata({"path": "vector", "metadata": {_METADATA_KEY: json.dumps(asdict(index))}})
    return index


def nearest(
    table: Any,
    query_vector: ArrayLike,
    top_k: int,
    *,
    probes: int,
    conditions: Sequence[Condition] = (),
) -> list[tuple[str, float]]:
    """Return the ids of the most similar products with their cosines, the most similar first.

    Args:
        table: a LanceDB table of products.
        query_vector: unit vector `(D,)`.
        top_k: maximum number of products.
        probes: number of lists of the index to scan, more if these hold fewer than `top_k` products that meet the
            conditions.
        conditions: conditions that products have to meet.
    """
    query = table.search(np.asarray(query_vector), vector_column_name="vector").distance_type("cosine")
    query = query.minimum_nprobes(probes).refine_factor(_REFINE_FACTOR).select(["id", "_distance"]).limit(top_k)
    if conditions:
        query = query.where(reduce(and_, (each.expression() for each in conditions)), prefilter=True)
    hits = query.maximum_nprobes(probes).to_arrow()
    if len(hits) < top_k:
        # 0 is no maximum, which takes ten times as long even where these lists would be enough.
        hits = query.maximum_nprobes(0).to_arrow()
    pairs = zip(hits["id"].to_pylist(), hits["_distance"].to_pylist(), strict=True)
    return [(product_id, 1 - distance) for product_id, distance in pairs]


def _measure(table: Any) -> VectorIndex:
    """Find the smallest number of probes that reaches the target recall."""
    count = table.count_rows()
    offsets = np.sort(np.random.default_rng(0).choice(count, min(_SAMPLE_SIZE, count), replace=False))
    sample = table.take_offsets(offsets.tolist()).select(["vector"]).to_arrow()
    queries = np.stack(sample["vector"].to_numpy(zero_copy_only=False))

    exact = _exact_nearest(table, queries)
    recall, probes = 0.0, _PROBES[0]
    for probes in _PROBES:
        found = ({each for each, _ in nearest(table, query, _TOP_K, probes=probes)} for query in queries)
        shares = [len(ids & truth) / len(truth) for ids, truth in zip(found, exact, strict=True)]
        recall = float(np.mean(shares))
        if recall >= _TARGET_RECALL:
            break
    return VectorIndex(recall=recall, probes=probes, sample=len(queries), products=count)


def _exact_nearest(table: Any, queries: NDArray[np.float32]) -> list[set[str]]:
    """Return the ids of the most similar products of each query, `(Q, D)` unit vectors.

    All queries are compared in one pass over the table, which a search for each would read as often.
    """
    similarity = np.empty((len(queries), 0), np.float32)
    ids = np.empty((len(queries), 0), object)
    for batch in table.search().select(["id", "vector"]).limit(None).to_batches(_SCAN_ROWS):
        vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)
        rows = np.broadcast_to(batch["id"].to_numpy(zero_copy_only=False), (len(queries), len(batch)))
        similarity = np.concatenate([similarity, queries @ vectors.T], axis=1)
        ids = np.concatenate([ids, rows], axis=1)
        best = np.argsort(-similarity, axis=1, kind="stable")[:, :_TOP_K]
        similarity, ids = np.take_along_axis(similarity, best, axis=1), np.take_along_axis(ids, best, axis=1)
    return [set(row) for row in ids]
