"""One version of a catalogue, its vectors and attributes in memory: exact search is a matrix product."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fashion_cnn.retrieval.catalogue import Catalogue, about_of
from fashion_cnn.retrieval.filters import Condition

if TYPE_CHECKING:
    import pyarrow as pa


class Snapshot:
    """The newest version of a catalogue when it was taken, which later changes of the catalogue leave alone.

    attributes: all columns but vector and thumbnail, in the order of the ids. vectors `(N, D)` float32, of length 1.
    Raises UserError where there is no catalogue.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.uri = catalogue.uri
        self._table = catalogue.open()
        self.version = int(self._table.version)
        # Whatever else happens to the catalogue, this handle reads this version.
        self._table.checkout(self.version)
        self.about = about_of(self._table)
        columns = [name for name in self._table.schema.names if name != "thumbnail"]
        table = self._table.search().select(columns).with_row_id(True).limit(None).to_arrow().sort_by("id")
        self._row_ids: list[int] = table["_rowid"].to_pylist()
        vectors = table["vector"].combine_chunks()
        # Column by column in memory, which halves the time of a product with one vector.
        self.vectors: Tensor = torch.from_numpy(
            np.array(vectors.flatten(), dtype=np.float32).reshape(len(table), self.about.dimensions).T.copy()
        ).T
        self.attributes: pa.Table = table.drop_columns(["vector", "_rowid"])

    def __len__(self) -> int:
        return len(self._row_ids)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each id."""
        return {one: row for row, one in enumerate(self.attributes["id"].to_pylist())}

    def similarity(self, direction: Tensor) -> Tensor:
        """The cosine of each product `(N,)` with a unit vector `(D,)`."""
        return torch.mv(self.vectors, direction)

    def holding(self, conditions: Sequence[Condition]) -> Tensor | None:
        """Which products meet all of the conditions, `(N,)` bool; None without conditions."""
        if not conditions:
            return None
        return torch.from_numpy(np.logical_and.reduce([each.holds(self.attributes) for each in conditions]))

    def rows_with_words(self, words: str, most: int) -> list[tuple[int, float]]:
        """The products whose titles hold any of the words, as (row, BM25 score), the best first."""
        query = self._table.search(words, query_type="fts").select(["id", "_score"]).limit(most)
        hits = query.to_arrow()
        return [
            (self.row_of[one], score)
            for one, score in zip(*(hits[c].to_pylist() for c in ("id", "_score")), strict=True)
        ]

    def thumbnails(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded pictures of these rows."""
        if not rows:
            return []
        wanted = [self._row_ids[row] for row in rows]
        found = self._table.take_row_ids(wanted).select(["thumbnail"]).with_row_id().to_arrow()
        by_id = dict(zip(found["_rowid"].to_pylist(), found["thumbnail"].to_pylist(), strict=True))
        return [by_id[one] for one in wanted]

    def described(self, row: int) -> dict[str, Any]:
        """All attributes of a row."""
        attributes: dict[str, Any] = self.attributes.slice(row, 1).to_pylist()[0]
        return attributes
