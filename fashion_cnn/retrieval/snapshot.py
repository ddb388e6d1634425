"""One version of a catalogue, its vectors and attributes in memory: exact search is a matrix product.

Of a catalogue with an index (approximate.py) the vectors stay on disk.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.retrieval import approximate
from fashion_cnn.retrieval.catalogue import Catalogue, has_title_index, metadata_of, table_version_of
from fashion_cnn.retrieval.filters import Condition


class TitleMatches(NamedTuple):
    """Products whose titles hold some words: rows `(K,)`, the best title first, and how good each one is, `(K,)`."""

    rows: Tensor
    scores: Tensor


class Snapshot:
    """A catalogue as the last indexing left it when it was taken, which later changes of the catalogue leave alone.

    attributes: all columns but vector and thumbnail, in the order of the ids. approximate: the index that it is
    searched by, None where it is searched exactly.
    Raises UserError where there is no catalogue.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.uri = catalogue.uri
        self._table = catalogue.open()
        self.table_version = table_version_of(self._table)
        self.version = self.table_version.version
        # Whatever else happens to the catalogue, this handle reads this version.
        self._table.checkout(self.version)
        self.metadata = metadata_of(self._table)
        self.vector_index = approximate.vector_index_of(self._table)
        left_on_disk = {"thumbnail"} | ({"vector"} if self.vector_index else set())
        columns = [name for name in self._table.schema.names if name not in left_on_disk]
        table = self._table.search().select(columns).with_row_id(True).limit(None).to_arrow().sort_by("id")
        self._row_ids = table["_rowid"].to_numpy()
        self._by_row_id = np.argsort(self._row_ids)
        self._held: pa.BinaryArray | None = None
        # Words that half of the titles hold take as long as ten searches by picture; pages and filters ask again.
        # Of what it needs alone: a snapshot that its own cache held would stay in memory when nobody has it any more.
        find_words = partial(_find_words, self.uri, self._table, self._row_ids, self._by_row_id)
        self._with_words = lru_cache(maxsize=32)(find_words)
        if not self.vector_index:
            self.vectors = self._as_tensor(table["vector"])
            table = table.drop_columns(["vector"])
        self.attributes: pa.Table = table.drop_columns(["_rowid"])

    def __len__(self) -> int:
        return len(self._row_ids)

    @cached_property
    def row_by_id(self) -> dict[str, int]:
        """The row of each id."""
        return {one: row for row, one in enumerate(self.attributes["id"].to_pylist())}

    @cached_property
    def vectors(self) -> Tensor:
        """Those of all products, `(N, D)` float32, of length 1."""
        return self.vectors_of(range(len(self)))

    def vectors_of(self, rows: Sequence[int]) -> Tensor:
        """Those of some products, `(len(rows), D)`."""
        if not self.vector_index:
            return self.vectors[list(rows)]
        found = self._table.take_row_ids(self._row_ids[list(rows)].tolist()).select(["id", "vector"]).to_arrow()
        place = {one: number for number, one in enumerate(found["id"].to_pylist())}
        ids = self.attributes["id"].take(list(rows)).to_pylist()
        return self._as_tensor(found["vector"].take([place[one] for one in ids]))

    def _as_tensor(self, column: pa.ChunkedArray) -> Tensor:
        flat = np.array(column.combine_chunks().flatten(), dtype=np.float32)
        # Column by column in memory, which halves the time of a product with one vector.
        return torch.from_numpy(flat.reshape(-1, self.metadata.dimensions).T.copy()).T

    def similarity(self, direction: Tensor) -> Tensor:
        """The cosine of each product `(N,)` with a unit vector `(D,)`."""
        return torch.mv(self.vectors, direction)

    def nearest(
        self, direction: Tensor, most: int, conditions: Sequence[Condition] = (), without: Sequence[int] = ()
    ) -> list[tuple[int, float]]:
        """The products that are likest to a unit vector `(D,)`, as (row, cosine), the likest first.

        conditions: all of which are to be met. without: rows that are not wanted.
        """
        if self.vector_index:
            found = approximate.nearest(
                self._table, direction, most + len(without), conditions=conditions, probes=self.vector_index.probes
            )
            rows = [(self.row_by_id[one], score) for one, score in found]
            return [(row, score) for row, score in rows if row not in without][:most]
        scores = self.similarity(direction)
        allowed = self.filter_mask(conditions)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        scores[list(without)] = -torch.inf
        best = scores.topk(min(most, len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(row, score) for row, score in pairs if score > -torch.inf]

    def filter_mask(self, conditions: Sequence[Condition]) -> Tensor | None:
        """Which products meet all of the conditions, `(N,)` bool; None without conditions."""
        if not conditions:
            return None
        return torch.from_numpy(np.logical_and.reduce([each.holds(self.attributes) for each in conditions]))

    def match_titles(self, words: str) -> TitleMatches:
        """The products whose titles hold any of the words, by BM25; of equal ones the first.

        Raises UserError where the titles have no index, which a first indexing makes at its end.
        """
        return self._with_words(words)

    def cache_thumbnails(self, most_bytes: int) -> None:
        """Keep all thumbnails in memory, if they take no more than about `most_bytes`: for whoever searches often."""
        sample = range(0, len(self), max(1, len(self) // 256))
        if sum(map(len, self.thumbnails(sample))) * len(self) > most_bytes * len(sample):
            return
        table = self._table.search().select(["thumbnail"]).with_row_id(True).limit(None).to_arrow()
        rows = self._by_row_id[np.searchsorted(self._row_ids, table["_rowid"].to_numpy(), sorter=self._by_row_id)]
        self._held = table["thumbnail"].take(np.argsort(rows)).combine_chunks()

    def thumbnails(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded pictures of these rows."""
        if self._held is not None:
            return [self._held[row].as_py() for row in rows]
        if not rows:
            return []
        wanted = self._row_ids[list(rows)].tolist()
        found = self._table.take_row_ids(wanted).select(["thumbnail"]).with_row_id().to_arrow()
        by_id = dict(zip(found["_rowid"].to_pylist(), found["thumbnail"].to_pylist(), strict=True))
        return [by_id[one] for one in wanted]

    def attributes_of(self, row: int) -> dict[str, Any]:
        """All attributes of a row."""
        attributes: dict[str, Any] = self.attributes.slice(row, 1).to_pylist()[0]
        return attributes


def _find_words(
    uri: str, table: Any, row_ids: np.ndarray[Any, Any], by_row_id: np.ndarray[Any, Any], words: str
) -> TitleMatches:
    """row_ids: of the snapshot's rows, and by_row_id: their order by these."""
    if not has_title_index(table):
        if len(row_ids):
            raise UserError(
                f"The titles of {uri} cannot be searched yet: its first indexing is not at its end. Where it was "
                "stopped, it goes on when it is started again."
            )
        return TitleMatches(torch.empty(0, dtype=torch.int64), torch.empty(0))
    query = table.search(words, query_type="fts").select(["_score"]).with_row_id(True).limit(len(row_ids))
    hits = query.to_arrow()
    rows = by_row_id[np.searchsorted(row_ids, hits["_rowid"].to_numpy(), sorter=by_row_id)]
    # Equal titles have equal scores, but for the last digits.
    scores = hits["_score"].to_numpy().astype(np.float32).round(4)
    order = np.lexsort((rows, -scores))
    return TitleMatches(torch.from_numpy(rows[order]), torch.from_numpy(scores[order]))
