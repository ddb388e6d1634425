"""An index of a large catalogue's vectors, which looks at a part of them, and how much it finds, measured.

Inverted lists of vectors of a byte a number (LanceDB's IVF_SQ, cosine): the index is a quarter of the vectors' size.
Four times as many products as are asked for are found by these and put in order by their exact cosines, so that the
scores are those of an exact search. LanceDB's default, product quantisation without that second look, found 4% of the
nearest 12 among 60,000 vectors of Fashion-MNIST (docs/search.md).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
import torch
from lancedb.expr import Expr
from lancedb.index import IvfSq
from torch import Tensor

from fashion_cnn.retrieval.filters import Condition

_REFINE = 4
# Of the lists, so many are looked at: the fewest by which enough is found.
_PROBES = (8, 16, 32, 64, 128)
_ENOUGH = 0.99
_TOP_K, _SAMPLE = 12, 200
_KEY = "approximate"


@dataclass(frozen=True)
class VectorIndex:
    """recall: the share of the exact nearest 12 that was found, over `sample` products of the catalogue's own.

    probes: how many lists are looked at. products: how many there were when it was measured.
    """

    recall: float
    probes: int
    sample: int
    products: int


def vector_index_of(table: Any) -> VectorIndex | None:
    """What was measured of a LanceDB table's index; None where it has none and is searched exactly."""
    stored = (table.schema.field("vector").metadata or {}).get(_KEY.encode())
    return VectorIndex(**json.loads(stored)) if stored and _names(table) else None


def update_vector_index(table: Any, above: int | None) -> VectorIndex | None:
    """Have an index of the vectors where there are more products than `above` (None or 0: never), and measure it.

    What was added since an index was built, LanceDB looks through beside it, until `optimize` takes it in.
    """
    if not above or table.count_rows() <= above:
        for name in _names(table):
            table.drop_index(name)
        return None
    if not _names(table):
        table.create_index("vector", config=IvfSq(distance_type="cosine"))
    measured = _measured(table)
    table.update_field_metadata({"path": "vector", "metadata": {_KEY: json.dumps(asdict(measured))}})
    return measured


def nearest(
    table: Any, direction: Tensor, most: int, *, conditions: Sequence[Condition] = (), probes: int, exact: bool = False
) -> list[tuple[str, float]]:
    """The ids of the products that are likest to a unit vector `(D,)`, with their cosines, the likest first.

    conditions: all of which are to be met. exact: look at all vectors, without the index.
    """
    query = table.search(direction.numpy(), vector_column_name="vector").distance_type("cosine")
    query = query.bypass_vector_index() if exact else query.nprobes(probes).refine_factor(_REFINE)
    if conditions:
        query = query.where(_all_of(each.expression() for each in conditions), prefilter=True)
    hits = query.select(["id", "_distance"]).limit(most).to_arrow()
    return [
        (one, 1 - distance) for one, distance in zip(hits["id"].to_pylist(), hits["_distance"].to_pylist(), strict=True)
    ]


def _all_of(expressions: Iterable[Expr]) -> Expr:
    return reduce(and_, expressions)


def _names(table: Any) -> list[str]:
    return [index.name for index in table.list_indices() if list(index.columns) == ["vector"]]


def _measured(table: Any) -> VectorIndex:
    count = table.count_rows()
    chosen = np.sort(np.random.default_rng(0).choice(count, min(_SAMPLE, count), replace=False))
    sample = table.take_offsets(chosen.tolist()).select(["vector"]).to_arrow()
    directions = torch.tensor(np.stack(sample["vector"].to_numpy(zero_copy_only=False)))
    truth = [_ids(nearest(table, one, _TOP_K, probes=0, exact=True)) for one in directions]
    recall, probes = 0.0, _PROBES[0]
    for probes in _PROBES:
        found = [_ids(nearest(table, one, _TOP_K, probes=probes)) for one in directions]
        recall = float(np.mean([len(one & exact) / len(exact) for one, exact in zip(found, truth, strict=True)]))
        if recall >= _ENOUGH:
            break
    return VectorIndex(recall=recall, probes=probes, sample=len(directions), products=count)


def _ids(hits: Iterable[tuple[str, float]]) -> set[str]:
    return {one for one, _ in hits}
