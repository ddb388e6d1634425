"""Search in a catalogue by pictures, by words, or by both; and products whose pictures are near duplicates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import NetworkOutput, TrainedNetwork
from fashion_cnn.retrieval.filters import Condition
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.vectors import as_query, embedding_to_search_vector, search_vectors, vector_dimensions

# How much "less like that" counts against "more like this".
_AGAINST = 0.5
# Of reciprocal rank fusion, and how many of the likest pictures and of the best titles take part in it.
_RANK_OFFSET, _TAKING_PART = 60, 1000
# So many rows of the matrix of all similarities at once.
_ROWS = 2048


@dataclass(frozen=True)
class Query:
    """like, unlike: ids of products to be like, and not to be like. pictures, unlike_pictures: the same of pictures
    `(C, H, W)` uint8 as the network takes them. concepts: directions `(D,)` of what the network was taught. words: any
    of which a title is to hold. conditions: on columns, all of which are to be met. A query that says nothing of these
    gives the catalogue from its start. skip: so many hits.
    """

    pictures: tuple[Tensor, ...] = ()
    unlike_pictures: tuple[Tensor, ...] = ()
    like: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    concepts: tuple[Tensor, ...] = ()
    text: str = ""
    conditions: tuple[Condition, ...] = ()
    top_k: int = 12
    offset: int = 0


@dataclass(frozen=True)
class Hit:
    """A product found. similarity: the cosine with what was asked for, None where no picture was. thumbnail: an encoded
    image. attributes: the shop's own columns among them.
    """

    id: str
    title: str
    category: str
    price: float | None
    similarity: float | None
    attributes: dict[str, Any]
    thumbnail: bytes = field(repr=False)


@dataclass(frozen=True)
class SearchHits:
    """hits: the best first. matching: how many products meet the conditions; with words, how many of these hold them,
    or take part beside pictures.
    """

    hits: tuple[Hit, ...]
    matching: int


class Ranking(NamedTuple):
    """rows: of the snapshot, the best first, each with its similarity, None where no picture was asked for. matching:
    as in `SearchHits`.
    """

    rows: tuple[tuple[int, float | None], ...]
    matching: int


class Searcher:
    """Searches a catalogue with the network that made it. Raises UserError where another network made it."""

    def __init__(self, snapshot: Snapshot, network: TrainedNetwork) -> None:
        self.snapshot = snapshot
        self.network = network
        made_by = snapshot.metadata
        if made_by.network != network.identity:
            raise UserError(
                f"{snapshot.uri} holds what another network saw ({made_by.run}), whose vectors mean something else "
                f"than those of {network.run.path}: search with run={made_by.run}, or index anew with this run and "
                "rebuild=true."
            )
        if made_by.dimensions != vector_dimensions(network, made_by.class_weight):
            raise UserError(f"{snapshot.uri} was made by another version of fashion_cnn: index anew with rebuild=true.")

    def search(self, query: Query) -> SearchHits:
        """The products that fit best. Raises UserError for an id that the catalogue does not hold."""
        return self.fetch(self.rank(query, self.embed(query)))

    def embed(self, query: Query) -> NetworkOutput | None:
        """What the network makes of the query's pictures, those to be like first; None where there is none."""
        pictures = (*query.pictures, *query.unlike_pictures)
        return self.network.outputs(torch.stack(pictures)) if pictures else None

    def rank(self, query: Query, seen: NetworkOutput | None) -> Ranking:
        """Which products fit best; seen: as `look` gave it. Raises UserError as `search` does."""
        direction = self._direction(query, seen)
        allowed = self.snapshot.filter_mask(query.conditions)
        asked_by_id = [self.snapshot.row_by_id[one] for one in (*query.like, *query.unlike)]
        if asked_by_id:
            allowed = torch.ones(len(self.snapshot), dtype=torch.bool) if allowed is None else allowed.clone()
            allowed[asked_by_id] = False
        most = query.offset + query.top_k
        ranked: Sequence[tuple[int, float | None]]
        if query.text.strip():
            ranked = self._by_words(query, direction, allowed, asked_by_id)
        elif direction is not None:
            ranked = self.snapshot.nearest(direction, most, query.conditions, asked_by_id)
        else:
            everything = torch.arange(len(self.snapshot)) if allowed is None else allowed.nonzero()[:, 0]
            ranked = [(row, None) for row in everything[:most].tolist()]
        matching = len(self.snapshot) if allowed is None else int(allowed.sum())
        if query.text.strip():
            matching = len(ranked)
        return Ranking(tuple(ranked[query.offset : most]), matching)

    def fetch(self, ranked: Ranking) -> SearchHits:
        """The products of a ranking, with their attributes and thumbnails."""
        return SearchHits(self._hits(ranked.rows), ranked.matching)

    def fetch_by_id(self, ids: Sequence[str]) -> tuple[Hit, ...]:
        """The products of these ids, which the catalogue must hold."""
        return self._hits([(self.snapshot.row_by_id[one], None) for one in ids])

    def _direction(self, query: Query, seen: NetworkOutput | None) -> Tensor | None:
        """Where the pictures point to, and away from those that it is not to be like (Rocchio, 1971)."""
        dimensions = self.snapshot.metadata.dimensions
        shown = (
            torch.empty(0, dimensions) if seen is None else search_vectors(seen, self.snapshot.metadata.class_weight)
        )
        taught = [embedding_to_search_vector(concept, dimensions) for concept in query.concepts]
        towards = self._vectors(shown[: len(query.pictures)], query.like, taught)
        away = self._vectors(shown[len(query.pictures) :], query.unlike)
        if not len(towards) and not len(away):
            return None
        direction = torch.zeros(dimensions)
        if len(towards):
            direction += towards.mean(dim=0)
        if len(away):
            direction -= (_AGAINST if len(towards) else 1) * away.mean(dim=0)
        return functional.normalize(as_query(direction, self.snapshot.metadata.class_weight), dim=0)

    def _vectors(self, shown: Tensor, ids: Sequence[str], taught: Sequence[Tensor] = ()) -> Tensor:
        if unknown := [one for one in ids if one not in self.snapshot.row_by_id]:
            raise UserError(f"The catalogue holds no product {unknown[0]}.")
        parts = [shown, *(direction[None] for direction in taught)]
        parts += [self.snapshot.vectors_of([self.snapshot.row_by_id[one] for one in ids])] if ids else []
        return torch.cat(parts)

    def _by_words(
        self, query: Query, direction: Tensor | None, allowed: Tensor | None, without: Sequence[int]
    ) -> Sequence[tuple[int, float | None]]:
        """By the titles alone, or by title and picture: the sum of 1 / (60 + rank) over both orders; a product whose
        title holds none of the words is in one of them (reciprocal rank fusion, Cormack et al., 2009). Titles that are
        as good share a rank, so that among them the picture decides.
        """
        rows, scores = self.snapshot.match_titles(query.text)
        if allowed is not None:
            rows, scores = rows[allowed[rows]], scores[allowed[rows]]
        if direction is None:
            return [(row, None) for row in rows.tolist()]
        similarity = dict(self.snapshot.nearest(direction, _TAKING_PART, query.conditions, without))
        if self.snapshot.vector_index:
            likeness = torch.tensor([similarity.get(row, -1.0) for row in rows.tolist()])
        else:
            likeness = self.snapshot.similarity(direction)[rows]
        order = torch.from_numpy(np.lexsort((-likeness.numpy(), -scores.numpy())))[:_TAKING_PART]
        rows, scores = rows[order], scores[order]
        titled = dict(zip(rows.tolist(), (torch.searchsorted(-scores, -scores) + 1).tolist(), strict=True))
        alike = list(similarity)
        # The others with the words come behind them, in their order.
        if others := sorted(set(titled) - set(alike)):
            similarity |= dict(zip(others, (self.snapshot.vectors_of(others) @ direction).tolist(), strict=True))
            others.sort(key=lambda row: -similarity[row])
        pictured = {row: rank for rank, row in enumerate([*alike, *others], start=1)}
        fused = {
            row: sum(1 / (_RANK_OFFSET + ranks[row]) for ranks in (pictured, titled) if row in ranks)
            for row in pictured
        }
        return [(row, similarity[row]) for row in sorted(fused, key=lambda row: -fused[row])]

    def _hits(self, ranked: Sequence[tuple[int, float | None]]) -> tuple[Hit, ...]:
        hits = []
        thumbnails = self.snapshot.thumbnails([row for row, _ in ranked])
        for (row, similarity), thumbnail in zip(ranked, thumbnails, strict=True):
            attributes = self.snapshot.attributes_of(row)
            del attributes["key"]
            hits.append(
                Hit(
                    **{name: attributes.pop(name) for name in ("id", "title", "category", "price")},
                    similarity=None if similarity is None else round(similarity, 6),
                    attributes=attributes,
                    thumbnail=thumbnail,
                )
            )
        return tuple(hits)


def near_duplicates(
    vectors: Tensor, at_least: float, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[list[int]]:
    """Groups of rows of unit vectors `(N, D)` that are linked by cosines of `at_least`, the largest group first.

    Rows that a chain of such links joins are one group, however far apart its ends are.
    """
    # Of each row the first of its group.
    leader = np.arange(len(vectors))
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS]
        # Each pair is seen once, from its first row.
        alike = (block @ vectors[start:].T >= at_least).triu(diagonal=1)
        for row in alike.any(dim=1).nonzero()[:, 0].tolist():
            group = int(leader[start + row])
            for other in np.unique(leader[start:][alike[row].numpy()]).tolist():
                if other != group:
                    group, joined = min(group, other), max(group, other)
                    leader[leader == joined] = group
        progress(min(start + _ROWS, len(vectors)), len(vectors))
    groups: dict[int, list[int]] = {}
    for row, first in enumerate(leader.tolist()):
        groups.setdefault(first, []).append(row)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))
