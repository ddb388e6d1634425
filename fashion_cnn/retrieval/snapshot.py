"""One version of a catalogue with its attributes and vectors in memory: exact search is a matrix product.

The vectors of a catalogue with a vector index (approximate.py) stay on disk.
"""

from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.query import FullTextOperator, MatchQuery
from numpy.typing import NDArray

from fashion_cnn.pictures.photographs import COLOUR_COLUMN
from fashion_cnn.retrieval import approximate
from fashion_cnn.retrieval.catalogue import (
    Catalogue,
    DamagedCatalogueError,
    index_names,
    metadata_of,
    storage_errors_reported,
    version_of,
)
from fashion_cnn.retrieval.filters import Condition
from fashion_cnn.retrieval.products import JOINED_TEXT, MAX_TEXT_BYTES, longest_text, text_column_of

# Maximum absolute value of a component of a unit vector, with room for rounding.
_MAX_COMPONENT = 1.01
# Rankings by words are cached for the next page of results: maximum number of them, and maximum size in bytes of all.
_TEXT_CACHE_SIZE, _TEXT_CACHE_BYTES = 32, 64_000_000
# Bytes of a product in a ranking: row (int64), score (float32) and whether it has all words (bool).
_MATCH_BYTES = 13
# A column with more distinct values holds no names of colours.
_MAX_COLOURS = 200


class TextMatches(NamedTuple):
    """Products whose texts match a query.

    Attributes:
        rows: rows of the snapshot `(K,)`, the best match first.
        scores: BM25 score of each product `(K,)`; those of products with all words are raised above the others.
        has_all_words: whether a text contains all words, `(K,)` bool.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    has_all_words: NDArray[np.bool_]


class _RowIds:
    """LanceDB's row ids of the rows of a snapshot."""

    def __init__(self, ids: np.ndarray[Any, Any]) -> None:
        self.ids = ids
        self._order = np.argsort(ids)

    def rows(self, ids: pa.ChunkedArray) -> np.ndarray[Any, Any]:
        """Return the row of each row id."""
        return self._order[np.searchsorted(self.ids, ids.to_numpy(), sorter=self._order)]


class Snapshot:
    """The version of a catalogue that the last complete indexing left. Later changes do not affect it.

    Args:
        catalogue: the catalogue.
        hidden_columns: custom columns that are not read, so that no search shows or filters them.

    Attributes:
        attributes: all columns except vector, thumbnail, joined texts and the hidden ones, in the order of the ids.
        schema: all columns of the catalogue, the hidden ones too.
        metadata: network and settings of the vectors.
        table_version: version of the table.
        vector_index: index for approximate search; None for exact search.

    Raises:
        UserError: if there is no complete catalogue, or its files are damaged, which later reads raise, too.
    """

    def __init__(self, catalogue: Catalogue, hidden_columns: Collection[str] = ()) -> None:
        self.uri = catalogue.uri
        self._table = catalogue.open()
        self._thumbnails: pa.BinaryArray | None = None
        with storage_errors_reported(self.uri):
            self.table_version = version_of(self._table)
            self.version = self.table_version.version
            # Pin the version for this handle.
            self._table.checkout(self.version)
            self.metadata = metadata_of(self._table)
            self.vector_index = approximate.vector_index_of(self._table)
            self.schema: pa.Schema = self._table.schema
            not_read = {"thumbnail", JOINED_TEXT, *hidden_columns} | ({"vector"} if self.vector_index else set())
            columns = [name for name in self.schema.names if name not in not_read]
            table = self._table.search().select(columns).with_row_id(True).limit(None).to_arrow().sort_by("id")
            self._row_ids = _RowIds(table["_rowid"].to_numpy())
            if not self.vector_index:
                self.vectors = self._to_array(table["vector"])
                table = table.drop_columns(["vector"])
            self.attributes: pa.Table = table.drop_columns(["_rowid"])
            for name, column in zip(self.attributes.column_names, self.attributes.columns, strict=True):
                if (size := longest_text(column)[1]) > MAX_TEXT_BYTES:
                    raise DamagedCatalogueError(self.uri, f"its column {name} holds a text of {size:,} bytes")
            for name in ("id", "title", "category"):
                if count := self.attributes[name].null_count:
                    raise DamagedCatalogueError(self.uri, f"its column {name} lacks {count:,} values")
        # Rankings are cached for further pages: a word in half of the products takes as long as ten vector searches.
        # The cached function must not refer to the snapshot, which would then never be freed.
        size = min(_TEXT_CACHE_SIZE, max(1, _TEXT_CACHE_BYTES // (_MATCH_BYTES * max(1, len(self)))))
        self._match_text = lru_cache(maxsize=size)(partial(_match_text, self.uri, self._table, self._row_ids))

    def __len__(self) -> int:
        return len(self._row_ids.ids)

    @cached_property
    def row_by_id(self) -> dict[str, int]:
        """Row of each product id."""
        return {product_id: row for row, product_id in enumerate(self.attributes["id"].to_pylist())}

    @cached_property
    def colours(self) -> tuple[str, ...]:
        """The main colours of the products; empty without a column of them."""
        schema = self.attributes.schema
        if COLOUR_COLUMN not in schema.names or not pa.types.is_string(schema.field(COLOUR_COLUMN).type):
            return ()
        values = pc.unique(self.attributes[COLOUR_COLUMN]).drop_null().to_pylist()
        return tuple(sorted(filter(str.strip, values))) if len(values) <= _MAX_COLOURS else ()

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """Unit vectors of all products, `(N, D)` float32."""
        return self.vectors_of(range(len(self)))

    def vectors_of(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return the unit vectors of these rows, `(len(rows), D)`."""
        return self._to_array(self._read("vector", rows)) if self.vector_index else self.vectors[list(rows)]

    def attributes_of(self, row: int) -> dict[str, Any]:
        """Return the attributes of a row by column name."""
        with storage_errors_reported(self.uri):  # such as a time that Python cannot represent
            attributes: dict[str, Any] = self.attributes.slice(row, 1).to_pylist()[0]
        return attributes

    def thumbnails(self, rows: Sequence[int]) -> list[bytes]:
        """Return the encoded thumbnails of these rows; empty where the catalogue has none."""
        if self._thumbnails is not None:
            return [self._thumbnails[row].as_py() for row in rows]
        return pc.fill_null(self._read("thumbnail", rows), b"").to_pylist() if rows else []

    def cache_thumbnails(self, max_bytes: int) -> None:
        """Keep all thumbnails in memory if a sample suggests that they take at most `max_bytes`."""
        sample = range(0, len(self), max(1, len(self) // 256))
        if sum(map(len, self.thumbnails(sample))) * len(self) > max_bytes * len(sample):
            return
        with storage_errors_reported(self.uri):
            table = self._table.search().select(["thumbnail"]).with_row_id(True).limit(None).to_arrow()
            order = np.argsort(self._row_ids.rows(table["_rowid"]))
            self._thumbnails = pc.fill_null(table["thumbnail"].take(order), b"").combine_chunks()

    def _read(self, column: str, rows: Sequence[int]) -> pa.ChunkedArray:
        """Read a column of these rows from disk, in their order."""
        row_ids = self._row_ids.ids[list(rows)].tolist()
        with storage_errors_reported(self.uri):
            table = self._table.take_row_ids(row_ids).select([column]).with_row_id().to_arrow()
            place = {row_id: number for number, row_id in enumerate(table["_rowid"].to_pylist())}
            return table[column].take([place[row_id] for row_id in row_ids])

    def _to_array(self, column: pa.ChunkedArray) -> NDArray[np.float32]:
        """Convert a column of N vectors to an array `(N, D)` in column-major order."""
        # `flatten` leaves nulls out, which would shift all later rows.
        if column.null_count:
            raise DamagedCatalogueError(self.uri, f"its column vector lacks {column.null_count:,} values")
        flat = np.array(column.combine_chunks().flatten(), dtype=np.float32)
        # Column-major memory order halves the time of a matrix-vector product.
        vectors = np.asfortranarray(flat.reshape(-1, self.metadata.dimensions))
        # The comparison is also false for what is not a number.
        if vectors.size and not max(vectors.max(), -vectors.min()) <= _MAX_COMPONENT:
            raise DamagedCatalogueError(self.uri, "a vector is not of unit length")
        return vectors

    def similarity(self, query_vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of each product `(N,)` with a unit vector `(D,)`."""
        similarity: NDArray[np.float32] = self.vectors @ query_vector
        return similarity

    def nearest(
        self,
        query_vector: NDArray[np.float32],
        top_k: int,
        conditions: Sequence[Condition] = (),
        exclude: Sequence[int] = (),
        allowed: NDArray[np.bool_] | None = None,
    ) -> list[tuple[int, float]]:
        """Return the most similar products as (row, cosine), the most similar first.

        Args:
            query_vector: unit vector `(D,)`.
            top_k: maximum number of products.
            conditions: conditions that products have to meet.
            exclude: rows to leave out.
            allowed: products that meet the conditions, `(N,)` bool, if they are known already.
        """
        if self.vector_index:
            probes = self.vector_index.probes
            with storage_errors_reported(self.uri):
                neighbours = approximate.nearest(
                    self._table, query_vector, top_k + len(exclude), conditions=conditions, probes=probes
                )
            rows = [(self.row_by_id[product_id], cosine) for product_id, cosine in neighbours]
            return [(row, cosine) for row, cosine in rows if row not in exclude][:top_k]
        scores = self.similarity(query_vector)
        allowed = self.filter_mask(conditions) if allowed is None else allowed
        if allowed is not None:
            scores[~allowed] = -np.inf
        scores[list(exclude)] = -np.inf
        # Keep all products that are as similar as the last one, and break ties by row: pages must not repeat products.
        limit = np.partition(scores, -top_k)[-top_k] if top_k < len(scores) else -np.inf
        best = np.flatnonzero(scores >= limit)
        best = best[np.lexsort((best, -scores[best]))][:top_k]
        pairs = zip(best.tolist(), scores[best].tolist(), strict=True)
        return [(row, score) for row, score in pairs if score > -np.inf]

    def filter_mask(self, conditions: Sequence[Condition]) -> NDArray[np.bool_] | None:
        """Return which products meet all conditions, `(N,)` bool; None without conditions."""
        if not conditions:
            return None
        mask: NDArray[np.bool_] = np.logical_and.reduce([each.mask(self.attributes) for each in conditions])
        return mask

    def match_text(self, text: str) -> TextMatches:
        """Return the products whose texts contain any word of `text`: those with all words first, then by BM25.

        Ties keep the order of the rows.

        Raises:
            UserError: if the full-text index is damaged.
        """
        return self._match_text(text)


def _match_text(uri: str, table: Any, row_ids: _RowIds, text: str) -> TextMatches:
    with storage_errors_reported(uri):
        if not len(row_ids.ids):
            return TextMatches(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.bool_))
        column = text_column_of(table.schema)
        if not index_names(table, column):
            raise DamagedCatalogueError(uri, "the full-text index is missing")
        rows, scores = _text_scores(table, row_ids, text)
        # The other arguments have defaults, which mypy does not see in pydantic's dataclass.
        all_words = MatchQuery(text, column, operator=FullTextOperator.AND)  # type: ignore[call-arg]
        complete, _ = _text_scores(table, row_ids, all_words)
    has_all_words = np.isin(rows, complete)
    scores += has_all_words * (scores.max(initial=0) + 1)
    order = np.lexsort((rows, -scores))
    return TextMatches(rows[order], scores[order], has_all_words[order])


def _text_scores(
    table: Any, row_ids: _RowIds, query: str | MatchQuery
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    search = table.search(query, query_type="fts").select(["_score"]).with_row_id(True).limit(len(row_ids.ids))
    hits = search.to_arrow()
    # Scores are rounded, since those of equal texts differ in their last digits.
    return row_ids.rows(hits["_rowid"]), hits["_score"].to_numpy().astype(np.float32).round(4)
