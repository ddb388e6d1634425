"""Search in a catalogue by pictures, by text or by both, and detection of near duplicates."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fashion_cnn.errors import UserError
from fashion_cnn.inference.prediction import PictureVectors
from fashion_cnn.retrieval.filters import Condition, TextColours, allow_colours, find_colours
from fashion_cnn.retrieval.products import PRODUCT_COLUMNS
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.vectors import (
    SearchNetwork,
    embed,
    embedding_to_search_vector,
    search_vectors,
    to_query,
    vector_dimensions,
)

# Weight of negative examples relative to positive ones.
_NEGATIVE_WEIGHT = 0.5
# Constant k of reciprocal rank fusion, whose scores are 1 / (k + rank).
_RRF_OFFSET = 60
# Number of hits of each ranking that are fused.
_FUSION_DEPTH = 1000
# Maximum number of rows and of values of the similarity matrix that are computed at once.
_BLOCK_ROWS, _BLOCK_VALUES = 2048, 2**24
# Shorter vectors are not scaled to unit length.
_MIN_NORM = 1e-12


@dataclass(frozen=True)
class Query:
    """A search. An empty query returns the catalogue in the order of its ids.

    Attributes:
        pictures: prepared pictures to be similar to, each `(C, H, W)` uint8.
        unlike_pictures: prepared pictures to be dissimilar to.
        like: ids of products to be similar to.
        unlike: ids of products to be dissimilar to.
        concepts: directions `(E,)` of taught concepts in the embedding space.
        text: words of which the text columns of a product have to contain at least one; products with all of them come
            first. Colours that it names are a further condition, see `find_colours`.
        conditions: conditions on columns, all of which have to be met.
        top_k: maximum number of hits.
        offset: number of best hits to skip.
    """

    pictures: tuple[ArrayLike, ...] = ()
    unlike_pictures: tuple[ArrayLike, ...] = ()
    like: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    concepts: tuple[ArrayLike, ...] = ()
    text: str = ""
    conditions: tuple[Condition, ...] = ()
    top_k: int = 12
    offset: int = 0


@dataclass(frozen=True)
class Hit:
    """A product in the result of a search.

    Attributes:
        id: id of the product.
        title: its title.
        category: its category.
        price: its price, if known.
        similarity: cosine with the query vector; None for a query by text or conditions alone.
        attributes: the other columns, among them the custom ones.
        thumbnail: encoded image.
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
    """Result of a search.

    Attributes:
        hits: the requested hits, the best first.
        matching: number of products that meet the conditions; with a text, number of those that were ranked.
        with_all_words: number of products that contain all words of the text; None without words.
        colours: the colours that the text names, which are a condition; None if it names none.
    """

    hits: tuple[Hit, ...]
    matching: int
    with_all_words: int | None = None
    colours: TextColours | None = None


class Ranking(NamedTuple):
    """Result of a search before its attributes are read.

    Attributes:
        rows: rows of the snapshot, the best first, with `Hit.similarity`.
        matching: `SearchHits.matching`.
        with_all_words: `SearchHits.with_all_words`.
        colours: `SearchHits.colours`.
    """

    rows: tuple[tuple[int, float | None], ...]
    matching: int
    with_all_words: int | None = None
    colours: TextColours | None = None


class Searcher:
    """Searches a snapshot of a catalogue.

    Args:
        snapshot: the snapshot.
        network: the network that made its vectors.

    Raises:
        UserError: if another network or version made the vectors.
    """

    def __init__(self, snapshot: Snapshot, network: SearchNetwork) -> None:
        self.snapshot = snapshot
        self.network = network
        metadata = snapshot.metadata
        if metadata.network != network.identity:
            raise UserError(
                f"{snapshot.uri} was indexed with another network than {network.run.path}: search with "
                f"{metadata.source}, or index again with this run and rebuild=true."
            )
        if metadata.dimensions != vector_dimensions(network, metadata.class_weight):
            raise UserError(
                f"{snapshot.uri} was indexed by another version of fashion_cnn: index again with rebuild=true."
            )

    def search(self, query: Query) -> SearchHits:
        """Return the best hits. Raises UserError for an id that the catalogue does not hold."""
        return self.fetch(self.rank(query, self.embed(query)))

    def embed(self, query: Query) -> PictureVectors | None:
        """Return logits and embeddings of the query's pictures, then its unlike pictures; None without pictures."""
        pictures = (*query.pictures, *query.unlike_pictures)
        return embed(self.network, np.stack([np.asarray(each) for each in pictures])) if pictures else None

    def rank(self, query: Query, output: PictureVectors | None) -> Ranking:
        """Rank the products.

        Args:
            query: the query.
            output: result of `embed`.

        Raises:
            UserError: for an id that the catalogue does not hold.
        """
        colours = find_colours(query.text, self.snapshot.colours, self._is_word_of_products)
        if colours:
            query = replace(query, text=colours.words, conditions=allow_colours(query.conditions, colours.values))
        query_vector = self._query_vector(query, output)
        allowed = self.snapshot.filter_mask(query.conditions)
        if exclude := [self.snapshot.row_by_id[product_id] for product_id in (*query.like, *query.unlike)]:
            allowed = np.ones(len(self.snapshot), np.bool_) if allowed is None else allowed.copy()
            allowed[exclude] = False
        end = query.offset + query.top_k
        matching = len(self.snapshot) if allowed is None else int(allowed.sum())
        ranked: Sequence[tuple[int, float | None]]
        with_all_words = None
        if query.text.strip():
            ranked, matching, with_all_words = self._rank_by_text(query, query_vector, allowed, exclude)
        elif query_vector is not None:
            ranked = self.snapshot.nearest(query_vector, end, query.conditions, exclude, allowed)
        else:
            rows = np.arange(len(self.snapshot)) if allowed is None else np.flatnonzero(allowed)
            ranked = [(row, None) for row in rows[:end].tolist()]
        return Ranking(tuple(ranked[query.offset : end]), matching, with_all_words, colours)

    def fetch(self, ranking: Ranking) -> SearchHits:
        """Read attributes and thumbnails of a ranking."""
        return SearchHits(self._fetch_rows(ranking.rows), *ranking[1:])

    def fetch_by_id(self, ids: Sequence[str]) -> tuple[Hit, ...]:
        """Return the products with these ids, which the catalogue has to hold."""
        return self._fetch_rows([(self.snapshot.row_by_id[product_id], None) for product_id in ids])

    def _fetch_rows(self, ranked: Sequence[tuple[int, float | None]]) -> tuple[Hit, ...]:
        hits = []
        thumbnails = self.snapshot.thumbnails([row for row, _ in ranked])
        for (row, similarity), thumbnail in zip(ranked, thumbnails, strict=True):
            attributes = self.snapshot.attributes_of(row)
            del attributes["key"]
            hits.append(
                Hit(
                    **{name: attributes.pop(name) for name in PRODUCT_COLUMNS},
                    similarity=None if similarity is None else round(similarity, 6),
                    attributes=attributes,
                    thumbnail=thumbnail,
                )
            )
        return tuple(hits)

    def _query_vector(self, query: Query, output: PictureVectors | None) -> NDArray[np.float32] | None:
        """Return the mean of the positive minus the weighted mean of the negative examples (Rocchio 1971)."""
        dimensions, class_weight = self.snapshot.metadata.dimensions, self.snapshot.metadata.class_weight
        pictures = np.empty((0, dimensions), np.float32) if output is None else search_vectors(output, class_weight)
        concepts = [embedding_to_search_vector(concept, dimensions) for concept in query.concepts]
        positive = self._examples(pictures[: len(query.pictures)], query.like, concepts)
        negative = self._examples(pictures[len(query.pictures) :], query.unlike)
        if not len(positive) and not len(negative):
            return None
        direction = np.zeros(dimensions, np.float32)
        if len(positive):
            direction += positive.mean(axis=0)
        if len(negative):
            direction -= (_NEGATIVE_WEIGHT if len(positive) else 1) * negative.mean(axis=0)
        query_vector = to_query(direction, class_weight)
        unit: NDArray[np.float32] = query_vector / max(float(np.linalg.norm(query_vector)), _MIN_NORM)
        return unit

    def _is_word_of_products(self, word: str) -> bool:
        return len(self.snapshot.match_text(word).rows) > 0

    def _examples(
        self, pictures: NDArray[np.float32], ids: Sequence[str], concepts: Sequence[NDArray[np.float32]] = ()
    ) -> NDArray[np.float32]:
        if unknown := [product_id for product_id in ids if product_id not in self.snapshot.row_by_id]:
            raise UserError(f"The catalogue holds no product {unknown[0]}.")
        parts = [pictures, *(concept[None] for concept in concepts)]
        parts += [self.snapshot.vectors_of([self.snapshot.row_by_id[product_id] for product_id in ids])] if ids else []
        return np.concatenate(parts)

    def _rank_by_text(
        self,
        query: Query,
        query_vector: NDArray[np.float32] | None,
        allowed: NDArray[np.bool_] | None,
        exclude: Sequence[int],
    ) -> tuple[Sequence[tuple[int, float | None]], int, int]:
        """Rank by text alone, or by text and picture with reciprocal rank fusion.

        A product that has none of the words is in the ranking by picture only. Products with equal scores of the text
        share a rank, so that the picture decides their order.

        Args:
            query: the query, whose text has words.
            query_vector: unit vector `(D,)`; None for a query by text alone.
            allowed: rows that meet the conditions and are not excluded, `(N,)` bool; None for all.
            exclude: rows to leave out.

        Returns:
            The best hits, at least up to the last requested one, the number of all, and that of hits with all words.
        """
        rows, scores, has_all_words = self.snapshot.match_text(query.text)
        if allowed is not None:
            kept = allowed[rows]
            rows, scores, has_all_words = rows[kept], scores[kept], has_all_words[kept]
        with_all_words = int(has_all_words.sum())
        if query_vector is None:
            best = rows[: query.offset + query.top_k].tolist()
            return [(row, None) for row in best], len(rows), with_all_words
        similarity = dict(self.snapshot.nearest(query_vector, _FUSION_DEPTH, query.conditions, exclude, allowed))
        if self.snapshot.vector_index:
            cosines = np.array([similarity.get(row, -1.0) for row in rows.tolist()], np.float32)
        else:
            cosines = self.snapshot.similarity(query_vector)[rows]
        order = np.lexsort((-cosines, -scores))[:_FUSION_DEPTH]
        rows, scores = rows[order], scores[order]
        text_rank = dict(zip(rows.tolist(), (np.searchsorted(-scores, -scores) + 1).tolist(), strict=True))
        nearest = list(similarity)
        # Matching products beyond the nearest products follow in the order of their own similarity.
        if others := sorted(set(text_rank) - set(nearest)):
            similarity |= dict(zip(others, (self.snapshot.vectors_of(others) @ query_vector).tolist(), strict=True))
            others.sort(key=lambda row: -similarity[row])
        picture_rank = {row: rank for rank, row in enumerate([*nearest, *others], start=1)}
        ranked = [(row, similarity[row]) for row in _fuse_rankings(picture_rank, text_rank)]
        return ranked, len(ranked), with_all_words


def _fuse_rankings(*rankings: Mapping[int, int]) -> list[int]:
    """Combine rankings by reciprocal rank fusion (Cormack et al. 2009).

    Args:
        rankings: rank by row, from 1. A row may be missing in some rankings.

    Returns:
        All rows, those with the highest sum of 1 / (60 + rank) first.
    """
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for row, rank in ranking.items():
            scores[row] += 1 / (_RRF_OFFSET + rank)
    return sorted(scores, key=lambda row: -scores[row])


def near_duplicates(
    vectors: ArrayLike, threshold: float, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[list[int]]:
    """Group rows that are linked by a cosine of at least `threshold` (single linkage), the largest group first.

    Args:
        vectors: unit vectors `(N, D)`.
        threshold: minimum cosine of a link; rows that a chain of links joins form one group.
        progress: called with the number of compared rows and of all rows.
    """
    vectors = np.asarray(vectors)
    # Union-find parent of each row: the first row of its group.
    parent = np.arange(len(vectors))
    block_rows = min(_BLOCK_ROWS, max(1, _BLOCK_VALUES // max(1, len(vectors))))
    for start in range(0, len(vectors), block_rows):
        block = vectors[start : start + block_rows]
        # The upper triangle holds each pair once.
        linked = np.triu(block @ vectors[start:].T >= threshold, k=1)
        for row in np.flatnonzero(linked.any(axis=1)).tolist():
            group = int(parent[start + row])
            for other in np.unique(parent[start:][linked[row]]).tolist():
                if other != group:
                    group, merged = min(group, other), max(group, other)
                    parent[parent == merged] = group
        progress(min(start + block_rows, len(vectors)), len(vectors))
    groups: dict[int, list[int]] = {}
    for row, first in enumerate(parent.tolist()):
        groups.setdefault(first, []).append(row)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))
