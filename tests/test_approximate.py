"""A catalogue with a vector index: its measured recall, and its hits compared with exact search."""

import re
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import TINY_DATA
from lancedb.index import IvfSq
from torch.nn import functional

from fashion_cnn.cli.main import compose
from fashion_cnn.index import main as index_main
from fashion_cnn.retrieval.approximate import nearest, update_vector_index, vector_index_of
from fashion_cnn.retrieval.catalogue import Catalogue, CatalogueMetadata
from fashion_cnn.retrieval.filters import Condition
from fashion_cnn.retrieval.searcher import Query, Searcher
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.runs import Run
from fashion_cnn.train import train

COUNT, DIMENSIONS = 3000, 16
METADATA = CatalogueMetadata(network="made", run="none", dimensions=DIMENSIONS, flip_average=False, invert="auto")


def products(numbers):
    """Vectors and products of these numbers, in two colours, with rising prices."""
    generator = torch.Generator().manual_seed(0)
    vectors = functional.normalize(torch.randn(COUNT + 500, DIMENSIONS, generator=generator), dim=1)[list(numbers)]
    return vectors, pa.table(
        {
            "id": [f"p{number:05}" for number in numbers],
            "key": [str(number) for number in numbers],
            "title": [f"{'blue' if number % 2 else 'red'} shirt {number}" for number in numbers],
            "category": ["Shirt" if number % 3 else "Bag" for number in numbers],
            "price": [float(number) for number in numbers],
            "seen_as": ["Shirt"] * len(numbers),
            "confidence": pa.array([0.5] * len(numbers), pa.float32()),
            "thumbnail": pa.array([b"%d" % number for number in numbers], pa.binary()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().ravel()), DIMENSIONS),
        }
    )


def add_table(catalogue, table):
    with catalogue.transaction():
        catalogue.begin(METADATA, [])
        catalogue.stage(table)
        catalogue.commit(table["id"].to_pylist())


def add_products(catalogue, numbers):
    vectors, table = products(numbers)
    add_table(catalogue, table)
    return vectors


def update_index(catalogue, above):
    with catalogue.transaction():
        return update_vector_index(catalogue.open_latest(), above)


def make_searcher(catalogue):
    # A fake network that returns the pixels as embedding.
    def embed_pictures(pictures):
        pixels = torch.from_numpy(pictures).flatten(1).float() - 128
        return np.empty(0), functional.normalize(pixels, dim=1).numpy()

    network = SimpleNamespace(identity="made", dimensions=DIMENSIONS, embed_pictures=embed_pictures)
    return Searcher(Snapshot(catalogue), network)


@pytest.fixture(scope="module")
def catalogues(tmp_path_factory):
    """Catalogues of the same products with and without a vector index."""
    catalogues = [Catalogue(str(tmp_path_factory.mktemp("catalogues") / name)) for name in ("indexed", "exact")]
    for catalogue in catalogues:
        add_products(catalogue, range(COUNT))
    assert update_index(catalogues[0], 1000)
    assert update_index(catalogues[1], COUNT) is None
    return catalogues


@pytest.fixture(scope="module")
def searchers(catalogues):
    return [make_searcher(catalogue) for catalogue in catalogues]


def test_recall_is_measured_when_the_index_is_built_and_stored_with_the_catalogue(catalogues):
    indexed, exact = (vector_index_of(catalogue.open()) for catalogue in catalogues)
    assert exact is None
    assert (indexed.products, indexed.sample) == (COUNT, 200)
    assert indexed.recall >= 0.95
    vectors, _ = products(range(COUNT))
    table, shares = catalogues[0].open(), []
    generator = torch.Generator().manual_seed(1)
    for direction in functional.normalize(torch.randn(50, DIMENSIONS, generator=generator), dim=1):
        truth = (vectors @ direction).topk(12)
        neighbours = nearest(table, direction, 12, probes=indexed.probes)
        ids = [product_id for product_id, _ in neighbours]
        shares.append(len(set(ids) & {f"p{row:05}" for row in truth.indices.tolist()}) / 12)
        # Scores are exact cosines.
        cosines = {f"p{row:05}": score for row, score in enumerate((vectors @ direction).tolist())}
        assert [score for _, score in neighbours] == pytest.approx(
            [cosines[product_id] for product_id in ids], abs=1e-5
        )
    assert np.mean(shares) >= 0.95


QUERIES = {
    "pictures": Query(pictures=(torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4) * 16,)),
    "like a product": Query(like=("p00007",), unlike=("p00008",)),
    "next hits": Query(like=("p00007",), offset=12),
    "of one category, in a range": Query(
        like=("p00007",), conditions=(Condition("category", values=("Bag",)), Condition("price", low=100.0, high=2000))
    ),
    "pictures and words": Query(like=("p00007",), text="blue"),
    "words": Query(text="blue"),
    "nothing": Query(),
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_approximate_search_finds_nearly_the_hits_of_exact_search(searchers, query):
    indexed, exact = (searcher.search(query) for searcher in searchers)
    # Only the best titles are fused with pictures, ranked by the cosines that the index returns.
    if query.text and query.like:
        assert indexed.matching == pytest.approx(exact.matching, rel=0.05)
    else:
        assert indexed.matching == exact.matching
    assert len(indexed.hits) == len(exact.hits) == 12
    shared = {hit.id for hit in indexed.hits} & {hit.id for hit in exact.hits}
    assert len(shared) >= 10
    similarity = {hit.id: hit.similarity for hit in exact.hits}
    for hit in indexed.hits:
        assert hit.thumbnail == b"%d" % int(hit.id[1:])
        if hit.id in shared:
            assert hit.similarity == pytest.approx(similarity[hit.id], abs=2e-5)
        if query.conditions:
            assert hit.category == "Bag"
            assert 100 <= hit.price <= 2000
        assert hit.id not in query.like + query.unlike


def test_pages_of_exact_search_show_each_of_equal_products_once(tmp_path):
    _, table = products(range(60))
    vectors = table["vector"].take([number if number < 10 else 10 + number % 2 for number in range(60)])
    catalogue = Catalogue(str(tmp_path))
    add_table(catalogue, table.set_column(table.column_names.index("vector"), "vector", vectors))
    searcher = make_searcher(catalogue)
    everything = [hit.id for hit in searcher.search(Query(like=("p00010",), top_k=59)).hits]
    pages = [searcher.search(Query(like=("p00010",), top_k=7, offset=offset)).hits for offset in range(0, 59, 7)]
    assert [hit.id for page in pages for hit in page] == everything
    assert everything[:24] == [f"p{number:05}" for number in range(12, 60, 2)], "equal products in the order of ids"


def test_a_rare_filter_and_a_deep_page_find_products_in_lists_that_are_not_probed(tmp_path):
    catalogue = Catalogue(str(tmp_path))
    vectors = add_products(catalogue, range(COUNT))
    table = catalogue.open_latest()
    table.create_index("vector", config=IvfSq(distance_type="cosine", num_partitions=50))
    rare = (Condition("price", low=700.0, high=711.0),)
    for direction in vectors[:5]:
        neighbours = nearest(table, direction, 12, probes=8, conditions=rare)
        truth = (vectors[700:712] @ direction).argsort(descending=True) + 700
        assert [product_id for product_id, _ in neighbours] == [f"p{row:05}" for row in truth.tolist()]
        assert len(nearest(table, direction, 1200, probes=8)) == 1200


def test_rankings_by_words_are_kept_within_a_limit_of_memory(catalogues, monkeypatch):
    # A title that matches takes 13 bytes: its row (8), its score (4) and a flag (1).
    monkeypatch.setattr("fashion_cnn.retrieval.snapshot._TEXT_CACHE_BYTES", 3 * 13 * COUNT)
    snapshot = Snapshot(catalogues[1])
    texts = ["red", "blue", "shirt 7", "shirt 9", "red"]
    for text in texts:
        assert snapshot.match_text(text).rows is snapshot.match_text(text).rows, "kept for the next page"
    assert snapshot._match_text.cache_info()[:4] == (len(texts), len(texts), 3, 3)


def test_indexed_vectors_stay_on_disk_until_they_are_read(searchers):
    indexed, exact = (searcher.snapshot for searcher in searchers)
    assert "vector" not in indexed.attributes.column_names
    assert np.allclose(indexed.vectors_of([5, 3]), exact.vectors[[5, 3]])
    assert np.allclose(indexed.vectors, exact.vectors)


@pytest.mark.training
def test_products_added_after_the_index_are_retrieved_and_a_small_catalogue_drops_it(tmp_path):
    catalogue = Catalogue(str(tmp_path / "grows"))
    add_products(catalogue, range(COUNT))
    update_index(catalogue, 1000)
    vectors = add_products(catalogue, range(COUNT, COUNT + 20))
    measured = update_index(catalogue, 1000)
    assert measured.products == COUNT + 20
    for number, direction in enumerate(vectors):
        ((best, score),) = nearest(catalogue.open(), direction, 1, probes=measured.probes)
        assert (best, round(score, 4)) == (f"p{COUNT + number:05}", 1.0)
    with catalogue.transaction():
        catalogue.remove([f"p{number:05}" for number in range(COUNT)])
    assert update_index(catalogue, 1000) is None
    assert vector_index_of(catalogue.open()) is None
    assert len(Snapshot(catalogue).vectors) == 20


@pytest.mark.slow
def test_the_command_reports_the_recall_of_the_index(tmp_path, command):
    config = compose(overrides=[*TINY_DATA, f"runs_dir='{tmp_path}'", "callbacks=essential", "trainer.max_epochs=1"])
    run = Run(tmp_path / train(config)["run"])
    status, out, _ = command(index_main, f"run={run.path}", "approximate_above=100")
    assert status == 0
    assert "Search is approximate: it finds" in out
    assert vector_index_of(Catalogue(str(run.catalogue)).open()).products == 160
    status, out, _ = command(index_main, f"run={run.path}", "approximate_above=0")
    assert (status, "approximate" in out) == (0, False)
    assert vector_index_of(Catalogue(str(run.catalogue)).open()) is None


def test_a_made_catalogue_is_measured_with_an_index_and_then_exactly(script, tmp_path, capsys):
    large = script("benchmarks/large_catalogue.py")
    words = [str(tmp_path / "made"), "--products=2000", "--dimensions=48"]
    large.main(words)
    out = capsys.readouterr().out
    assert "2,000 products made and staged" in out
    recall = float(re.search(r"VectorIndex\(recall=([\d.]+)", out)[1])
    assert recall > 0.9
    assert "200 searches for 12: p50" in out
    large.main([*words, "--exact"])
    out = capsys.readouterr().out
    assert "staged" not in out
    assert "None" in out
    assert Snapshot(Catalogue(words[0])).vectors.shape == (2000, 48)
