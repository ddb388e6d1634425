"""`python -m fashion_cnn.search`: search by picture, text and product, filters and near duplicates."""

import gc
import json
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import REPOSITORY, TINY_DATA
from lancedb.expr import Expr
from PIL import Image
from tiny_images import TinyDataModule

from fashion_cnn.cli.main import compose
from fashion_cnn.errors import UserError
from fashion_cnn.index import main as index_main
from fashion_cnn.inference.network import NetworkOutput, TrainedNetwork
from fashion_cnn.retrieval.catalogue import Catalogue
from fashion_cnn.retrieval.filters import parse_conditions
from fashion_cnn.retrieval.searcher import Query, Searcher, near_duplicates
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.vectors import search_vectors, to_query
from fashion_cnn.runs import Run
from fashion_cnn.search import main
from fashion_cnn.teach import main as teach_main
from fashion_cnn.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network trained on synthetic images, with its 160 training images as catalogue."""
    folder = tmp_path_factory.mktemp("runs")
    config = compose(overrides=[*TINY_DATA, f"runs_dir='{folder}'", "callbacks=essential"])
    trained = Run(Path(train(config)["run"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fashion_cnn", f"run={trained.path}"])
        index_main()
    return trained


@pytest.fixture(scope="module")
def searcher(run):
    return Searcher(Snapshot(Catalogue(str(run.catalogue))), TrainedNetwork(run, flip_average=True))


def test_the_python_example_of_the_documentation_prints_hits(run, picture, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "search.md").read_text(), re.DOTALL)
    (tmp_path / "runs").symlink_to(run.path.parents[1])
    Image.open(picture[0]).save(tmp_path / "shirt.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "search.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(10 <= float(line.split()[-2]) <= 50 for line in lines)


@pytest.fixture
def search(command, run):
    return lambda *arguments: command(main, f"run={run.path}", *map(str, arguments))


@pytest.fixture
def picture(tmp_path):
    images, _ = TinyDataModule(mean=[0.3], std=[0.3], val_size=32).load(train=False)
    path = tmp_path / "a (new), picture=1.png"
    Image.fromarray(images[5, 0].numpy()).save(path)
    return path, images[5]


def ids(result):
    return [hit.id for hit in result.hits]


def test_hits_are_ranked_by_cosine_as_in_brute_force(searcher, picture):
    vectors = searcher.snapshot.vectors.astype(np.float64)
    output = searcher.network.outputs(picture[1][None])
    weight = searcher.snapshot.metadata.class_weight
    query = to_query(search_vectors(output, weight), weight)[0].astype(np.float64)
    cosines = vectors @ query / np.linalg.norm(query) / np.linalg.norm(vectors, axis=1)
    expected = [f"train-{row:05}" for row in np.argsort(-cosines)[:10]]
    result = searcher.search(Query(pictures=(picture[1],), top_k=10))
    assert ids(result) == expected
    assert [hit.similarity for hit in result.hits] == pytest.approx(np.sort(-cosines)[:10] * -1, abs=1e-5)
    rest = searcher.search(Query(pictures=(picture[1],), top_k=4, offset=6))
    assert ids(rest) == expected[6:]
    assert result.hits[0].category == "middle", "the class of a bar in the second quarter"
    assert result.hits[0].thumbnail.startswith(b"\x89PNG")


def test_similarity_is_the_weighted_sum_of_embedding_and_class_similarity():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(6, 5, generator=generator), dim=1)
    logits = torch.randn(6, 3, generator=generator) + 7
    vectors = search_vectors(NetworkOutput(logits, embeddings), 0.3)
    odds = np.exp(logits.double().numpy())
    shares = odds / odds.sum(axis=1, keepdims=True)
    expected = 0.7 * (embeddings @ embeddings.T).numpy() + 0.3 * shares @ shares.T
    assert vectors @ to_query(vectors, 0.3).T == pytest.approx(expected, abs=1e-5)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5), "a product and itself are alike"
    assert (search_vectors(NetworkOutput(logits, embeddings), 0) == embeddings.numpy()).all()


def test_like_excludes_the_product_itself_and_unlike_ranks_similar_products_lower(searcher):
    alone = searcher.search(Query(like=("train-00000",), top_k=159))
    assert "train-00000" not in ids(alone)
    assert len(alone.hits) == 159
    nearest, other = ids(alone)[0], ids(alone)[-1]
    pushed = searcher.search(Query(like=("train-00000",), unlike=(nearest,), top_k=158))
    assert nearest not in ids(pushed)
    towards = searcher.search(Query(like=("train-00000", other), top_k=158))
    place = {
        name: {hit: place for place, hit in enumerate(ids(result))} for name, result in (("a", alone), ("b", towards))
    }
    same_class = [hit for hit in ids(towards) if hit[-1:] != "0" and int(hit[6:]) % 4 == int(other[6:]) % 4]
    assert np.mean([place["b"][hit] for hit in same_class]) < np.mean([place["a"][hit] for hit in same_class])
    away = searcher.search(Query(unlike=("train-00000",), top_k=5))
    assert all(int(hit[6:]) % 4 != 0 for hit in ids(away)), "the most dissimilar are of another class"
    with pytest.raises(UserError, match="no product nosuch"):
        searcher.search(Query(like=("nosuch",)))


def test_a_taught_concept_retrieves_its_products(search, command, run, tmp_path):
    images, targets = TinyDataModule(mean=[0.3], std=[0.3], val_size=32).load(train=False)
    for number in (targets == 2).nonzero()[:6, 0].tolist():
        Image.fromarray(images[number, 0].numpy()).save(tmp_path / f"{number}.png")
    assert command(teach_main, f"run={run.path}", "name=rather low", f"images={tmp_path}")[0] == 0
    status, out, _ = search("concept=rather low", "top_k=10", "format=json")
    assert status == 0
    assert [record["category"] for record in json.loads(out)].count("low") >= 8
    status, _, err = search("concept=rather high")
    assert status == 1
    assert "concept=rather high: there is no such concept. There are: rather low." in err


def test_text_alone_and_fused_with_a_picture(searcher, picture):
    result = searcher.search(Query(text="bottom", top_k=50))
    assert {hit.category for hit in result.hits} == {"bottom"}
    assert (result.matching, len(result.hits), result.hits[0].similarity) == (40, 40, None)
    both = searcher.search(Query(text="bottom", pictures=(picture[1],), top_k=160))
    order = ids(both)
    assert len(order) == 160
    alike = ids(searcher.search(Query(pictures=(picture[1],), top_k=160)))
    # Expected: the sum of 1 / (60 + rank) over both rankings; "Light bottom" and "Dark bottom" match equally well.
    fused = {product_id: 1 / (61 + rank) for rank, product_id in enumerate(alike)}
    for product_id in ids(result):
        fused[product_id] += 1 / 61
    assert [round(fused[product_id], 9) for product_id in order] == sorted(
        (round(value, 9) for value in fused.values()), reverse=True
    )
    assert set(order[:40]) == set(ids(result)), "words come first"
    assert order[:40] == [product_id for product_id in alike if product_id in ids(result)], (
        "and among these the picture decides"
    )


def test_matching_counts_only_the_fused_hits_of_text_and_picture(searcher, monkeypatch):
    monkeypatch.setattr("fashion_cnn.retrieval.searcher._FUSION_DEPTH", 20)
    result = searcher.search(Query(text="bottom", like=("train-00000",), top_k=160))
    assert 20 < result.matching == len(result.hits) < 160
    assert not searcher.search(Query(text="bottom", like=("train-00000",), offset=result.matching)).hits


def test_an_unreferenced_snapshot_is_freed_at_once(run):
    snapshot = Snapshot(Catalogue(str(run.catalogue)))
    snapshot.cache_thumbnails(10**9)
    rows = snapshot.match_text("bottom").rows
    assert len(rows)
    gone = weakref.ref(snapshot)
    gc.disable()
    try:
        del snapshot
        if sys.version_info >= (3, 13):
            # LanceDB keeps the frames of its callers in a cycle; the server collects the former snapshot itself.
            gc.collect()
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "words", ["' OR 1=1 --", '"', "\\", "a" * 5000, "(", "*", "title:x", "\0", "🙂", "AND NOT", "-"]
)
def test_text_is_not_parsed_as_a_query_language(searcher, words):
    assert searcher.search(Query(text=words, top_k=3)).matching == 0


def test_an_empty_query_returns_the_catalogue_in_order(searcher):
    result = searcher.search(Query(top_k=3, offset=1))
    assert (ids(result), result.matching) == (["train-00001", "train-00002", "train-00003"], 160)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"category": "low"}, lambda row: row["category"] == "low"),
        ({"category": ["low", "top"]}, lambda row: row["category"] in ("low", "top")),
        ({"price": {"min": 10, "max": 20}}, lambda row: 10 <= row["price"] <= 20),
        ({"price": {"min": "25"}, "category": []}, lambda row: row["price"] >= 25),
        ({"category": "' OR 1=1 --"}, lambda row: False),
        ({"category": None, "price": {"max": None}}, lambda row: True),
        (
            {"seen_as": "top", "confidence": {"max": 0.5}},
            lambda row: row["seen_as"] == "top" and row["confidence"] <= 0.5,
        ),
    ],
)
def test_conditions_select_the_same_rows_in_memory_and_in_lancedb(searcher, run, filters, expected):
    table = searcher.snapshot.attributes
    conditions = parse_conditions(filters, table.schema)
    right = [row["id"] for row in table.to_pylist() if expected(row)]
    result = searcher.search(Query(like=("train-00003",), conditions=conditions, top_k=500))
    assert sorted([*ids(result), *({"train-00003"} & set(right))]) == right
    if conditions:
        together = conditions[0].expression()
        for other in conditions[1:]:
            together = together & other.expression()
        assert isinstance(together, Expr)
        stored = Catalogue(str(run.catalogue)).open().search().where(together).select(["id"]).to_arrow()
        assert sorted(stored["id"].to_pylist()) == right


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"colour": "red"}, "no column colour to filter by: use one of title, category, price"),
        ({"vector": [1]}, "no column vector"),
        ({"price": "cheap"}, "price=cheap is not possible: the column holds double"),
        ({"price": {"least": 1}}, "least is not a bound"),
        ({"price": {"min": 50, "max": 10}}, "price: min=50.0 is above max=10.0"),
        ({"key": "x"}, "no column key"),
        ({"id": "train-00000"}, "no column id"),
    ],
)
def test_invalid_conditions_are_rejected(searcher, filters, message):
    with pytest.raises(UserError, match=message):
        parse_conditions(filters, searcher.snapshot.attributes.schema)


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("us", "UTC")], ids=str)
@pytest.mark.parametrize("text", ["0000-01-01", "10000-01-01", "2024-02-30", "-1", "9" * 400, "now", "\ud800"])
def test_dates_that_do_not_exist_are_rejected(kind, text):
    with pytest.raises(UserError, match="is not possible: the column holds"):
        parse_conditions({"released": text}, pa.schema([("released", kind)]))


def test_null_meets_no_condition():
    table = pa.table({"price": [1.0, None, 3.0]})
    (condition,) = parse_conditions({"price": {"max": 2}}, table.schema)
    assert condition.mask(table).tolist() == [True, False, False]


def test_near_duplicates_are_grouped_by_single_linkage():
    angles = torch.tensor([0.0, 2.0, 0.1, 2.05, 0.2, 4.0])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    # Each link spans 0.1 at most; the ends of the first group are 0.2 apart.
    assert near_duplicates(vectors, float(np.cos(0.11))) == [[0, 2, 4], [1, 3]]
    assert near_duplicates(vectors, 0.99999) == []


def test_near_duplicates_are_linked_across_blocks(monkeypatch):
    monkeypatch.setattr("fashion_cnn.retrieval.searcher._BLOCK_ROWS", 3)
    vectors = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors[7] = vectors[19] = vectors[2].clone()
    vectors[11] = vectors[0].clone()
    assert near_duplicates(vectors, 0.99999) == [[2, 7, 19], [0, 11]]
    monkeypatch.setattr("fashion_cnn.retrieval.searcher._BLOCK_VALUES", 50)
    compared = []
    assert near_duplicates(vectors, 0.99999, lambda done, total: compared.append(done)) == [[2, 7, 19], [0, 11]]
    assert compared == list(range(2, 21, 2)), "fewer rows at once of many products"


@pytest.mark.slow
def test_the_command_prints_tables_and_json_and_draws_contact_sheets(search, picture, tmp_path):
    path, _ = picture
    status, out, err = search(f"image={path}", "top_k=2", "category=middle")
    assert (status, err) == (0, "")
    assert out.count("middle") >= 4
    assert [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")] == ["1", "2"]
    sheet = tmp_path / "sheet.png"
    status, out, err = search(f"image={path}", "top_k=2", "format=json", f"sheet={sheet}")
    records = json.loads(out)
    assert [*records[0]] == ["id", "title", "category", "price", "similarity", "seen_as", "confidence", "tone"]
    assert err == f"Contact sheet: {sheet}\n"
    with Image.open(sheet) as drawn:
        assert drawn.width > 250
    _, out, _ = search(f"like={records[0]['id']}", "top_k=1", "format=json")
    assert json.loads(out)[0]["id"] != records[0]["id"]
    _, out, _ = search(f"image={path}", "format=json", "where={category:bottom}")
    assert {record["category"] for record in json.loads(out)} == {"bottom"}
    _, out, _ = search("text=nosuchword")
    assert out == "No product of the catalogue matches.\n"
    _, out, err = search("text=bottom", "category=buttom")
    assert out == "No product of the catalogue matches.\n"
    assert err == "No product has category=buttom: the values are bottom, low, middle, top.\n"
    status, out, _ = search("duplicates=0.5", "format=json")
    assert (status, max(map(len, json.loads(out))) > 1) == (0, True)
    assert "products in" in search("duplicates=0.9999999")[1]
    table = search("duplicates=0.5")[1]
    assert "titles" in table
    assert f" {len(json.loads(out)[0])} │" in table, "the number of products of the largest group"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "The query is empty"),
        (["image=nosuch.png"], 1, "image=nosuch.png does not exist"),
        (["text=x", "duplicates=0.9"], 2, "omit text="),
        (["duplicates=2"], 2, "duplicates=2"),
        (["duplicates=some"], 2, "duplicates=some is not a similarity"),
        (["text=x", "top_k=0"], 2, "top_k=0"),
        (["text=x", "price=5"], 2, "price=5 is not [min,max]"),
        (["text=x", "price='59'"], 2, "price=59 is not [min,max]"),
        (["text=x", "price=[dear,null]"], 1, "price=dear is not possible"),
        (["text=x", "where=red"], 2, "where=red names no column"),
        (["text=x", "where={colour:red}"], 1, "There is no column colour"),
        (["like=nosuch"], 1, "holds no product nosuch"),
        (["txt=x"], 2, "Did you mean text?"),
        (["text=x", "catalogue=nosuch/at all"], 1, "no catalogue at nosuch/at all"),
        (["text=x", "sheet=nosuch/x.png"], 1, "sheet=nosuch/x.png cannot be written"),
    ],
)
def test_invalid_options_are_reported_in_one_line(search, arguments, status, message):
    result, out, err = search(*arguments)
    assert result == status
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


def test_an_unreadable_picture_is_reported(search, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    status, _, err = search(f"image={broken}")
    assert status == 1
    assert "broken.png: is not a picture: it holds text" in err


def test_a_catalogue_of_another_network_is_rejected(command, run, tmp_path):
    overrides = [*TINY_DATA, f"runs_dir='{tmp_path}'", "callbacks=essential", "seed=5", "trainer.max_epochs=1"]
    other = train(compose(overrides=overrides))["run"]
    status, _, err = command(main, f"run={other}", f"catalogue={run.catalogue}", "text=x")
    assert status == 1
    assert f"search with run={run.path}, or index again with this run and rebuild=true" in err


@pytest.mark.slow
def test_the_default_run_is_that_of_the_catalogue_or_the_newest_with_a_catalogue(command, run, tmp_path):
    overrides = [*TINY_DATA, f"runs_dir='{run.path.parent.parent}'", "callbacks=essential", "trainer.max_epochs=1"]
    other = Path(train(compose(overrides=overrides))["run"])
    searched = (f"runs_dir={run.path.parent.parent}", "text=bottom", "top_k=1", "format=json")
    status, out, err = command(main, *searched)
    assert (status, len(json.loads(out))) == (0, 1)
    assert f"The newest run with a catalogue: {run.path}" in err
    elsewhere = tmp_path / "nothing here"
    status, out, err = command(main, f"runs_dir={elsewhere}", f"catalogue={run.catalogue}", "text=bottom", "top_k=1")
    assert (status, err) == (0, "")
    # An interrupted indexing leaves its staging table.
    (other / "catalogue" / "staging.lance").mkdir(parents=True)
    assert f"The newest run with a catalogue: {run.path}" in command(main, *searched)[2]
    status, _, err = command(main, f"runs_dir={elsewhere}", "text=bottom")
    assert (status, err.count("\n")) == (1, 1)
    assert "There is no finished run in" in err
