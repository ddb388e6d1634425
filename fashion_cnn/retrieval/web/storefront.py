"""One version of a catalogue, ready to be searched, with what a page says of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import torch

from fashion_cnn.prediction import Predictor
from fashion_cnn.retrieval.catalogue import shops_own
from fashion_cnn.retrieval.searcher import Query, Searcher
from fashion_cnn.retrieval.web.asked import Asked
from fashion_cnn.retrieval.web.projection import Projection, projection
from fashion_cnn.retrieval.web.samples import Sample
from fashion_cnn.retrieval.web.shown import shown

# A column with more different values than this is no choice of a few.
_FEW = 30
# Nor is one with a longer value, in characters: it says something of each product.
_LONGEST = 60
_MOST_CATEGORIES = 200
_SAMPLES = 10
# In bytes; more than these are read as they are needed.
_THUMBNAILS = 128_000_000


@dataclass(frozen=True)
class Choice:
    """A column, and its values with the number of products that hold each, as a person chooses among them."""

    column: str
    values: tuple[tuple[str, int], ...]


class Storefront:
    """searcher, predictor: of the catalogue's version that was the newest at `since`, in seconds since 1970.
    categories: the largest 200, of `category_count`.
    """

    def __init__(self, searcher: Searcher, predictor: Predictor) -> None:
        self.searcher = searcher
        self.predictor = predictor
        self.since = time.time()
        self.snapshot = searcher.snapshot
        attributes = self.snapshot.attributes
        # Read from disk they were a third of the time of a search.
        self.snapshot.hold_thumbnails(_THUMBNAILS)
        # What is made at first use is made now, so that the first to ask need not wait.
        searcher.search(Query(pictures=(torch.zeros(searcher.network.preparation.image_shape, dtype=torch.uint8),)))
        counted = _counted(attributes["category"])
        self.categories = Choice("category", _largest(counted, _MOST_CATEGORIES))
        self.category_count = len(counted)
        self.choices = tuple(_choices(attributes))
        prices = pc.min_max(attributes["price"]).as_py()
        self.prices: tuple[float, float] | None = None if prices["min"] is None else (prices["min"], prices["max"])

    @cached_property
    def projection(self) -> Projection:
        """Where the products lie among each other; made when it is first looked at."""
        return projection(self.snapshot)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The first product of each of the largest categories; read when they are first shown."""
        firsts: dict[str, str] = {}
        wanted = [name for name, _ in sorted(self.categories.values, key=lambda one: -one[1])[:_SAMPLES]]
        columns = (self.snapshot.attributes[name].to_pylist() for name in ("id", "category"))
        for one, category in zip(*columns, strict=True):
            firsts.setdefault(category, one)
        names = sorted(wanted)
        thumbnails = self.snapshot.thumbnails([self.snapshot.row_of[firsts[name]] for name in names])
        return tuple(
            Sample(name, shown(thumbnail), Asked(like=[firsts[name]]).link())
            for name, thumbnail in zip(names, thumbnails, strict=True)
        )


def _choices(attributes: pa.Table) -> Sequence[Choice]:
    own = shops_own(attributes.schema)
    texts = [field.name for field in own if pa.types.is_string(field.type) or pa.types.is_boolean(field.type)]
    # What else is in a link before a colon would be the column's name.
    counted = ((name, _counted(attributes[name].cast(pa.string()))) for name in texts if ":" not in name)
    return [
        Choice(name, _largest(values, _FEW))
        for name, values in counted
        if 1 < len(values) <= _FEW and all(len(one) <= _LONGEST and not set(one) & set("\r\n") for one in values)
    ]


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    """The number of each value."""
    counts = pc.value_counts(pc.drop_null(column))
    return {one["values"]: one["counts"] for one in counts.to_pylist()}


def _largest(counted: dict[str, int], most: int) -> tuple[tuple[str, int], ...]:
    """The values that come up most, with their numbers, in the order of their names."""
    return tuple(sorted(sorted(counted.items(), key=lambda one: -one[1])[:most]))
