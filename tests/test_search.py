"""`python -m fashion_cnn.search`: what in a catalogue looks like a picture, and sounds like words."""

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import TINY_DATA
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
    """A network of made images, whose 160 training images are its catalogue."""
    folder = tmp_path_factory.mktemp("runs")
    config = compose(overrides=[*TINY_DATA, f"runs_dir='{folder}'", "callbacks=essential"])
    found = Run(Path(train(config)["run"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fashion_cnn", f"run={found.path}"])
        index_main()
    return found


@pytest.fixture(scope="module")
def searcher(run):
    return Searcher(Snapshot(Catalogue(str(run.catalogue))), TrainedNetwork(run, flip_average=True))


@pytest.fixture
def search(command, run):
    return lambda *arguments: command(main, f"run={run.path}", *map(str, arguments))


@pytest.fixture
def picture(tmp_path):
    images, _ = TinyDataModule(mean=[0.3], std=[0.3], val_size=32).load(train=False)
    path = tmp_path / "a (new), picture=1.png"
    Image.fromarray(images[5, 0].numpy()).save(path)
    return path, images[5]


def ids(found):
    return [hit.id for hit in found.hits]


def test_the_nearest_come_first_as_brute_force_has_them(searcher, picture):
    vectors = searcher.snapshot.vectors.numpy().astype(np.float64)
    seen = searcher.network.outputs(picture[1][None])
    weight = searcher.snapshot.metadata.class_weight
    asked = to_query(search_vectors(seen, weight), weight).numpy()[0].astype(np.float64)
    cosines = vectors @ asked / np.linalg.norm(asked) / np.linalg.norm(vectors, axis=1)
    expected = [f"train-{row:05}" for row in np.argsort(-cosines)[:10]]
    found = searcher.search(Query(pictures=(picture[1],), top_k=10))
    assert ids(found) == expected
    assert [hit.similarity for hit in found.hits] == pytest.approx(np.sort(-cosines)[:10] * -1, abs=1e-5)
    rest = searcher.search(Query(pictures=(picture[1],), top_k=4, offset=6))
    assert ids(rest) == expected[6:]
    assert found.hits[0].category == "middle", "a network that learned, of a bar in the second quarter"
    assert found.hits[0].thumbnail.startswith(b"\x89PNG")


def test_alike_is_by_look_and_by_class_as_they_are_weighed():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(6, 5, generator=generator), dim=1)
    logits = torch.randn(6, 3, generator=generator) + 7
    vectors = search_vectors(NetworkOutput(logits, embeddings), 0.3)
    odds = np.exp(logits.double().numpy())
    shares = odds / odds.sum(axis=1, keepdims=True)
    expected = 0.7 * (embeddings @ embeddings.T).numpy() + 0.3 * shares @ shares.T
    assert (vectors @ to_query(vectors, 0.3).T).numpy() == pytest.approx(expected, abs=1e-5)
    assert vectors.norm(dim=1).numpy() == pytest.approx(1, abs=1e-5), "a product and itself are alike"
    assert search_vectors(NetworkOutput(logits, embeddings), 0).equal(embeddings)


def test_like_a_product_leaves_out_that_product_and_unlike_pushes_away(searcher):
    alone = searcher.search(Query(like=("train-00000",), top_k=159))
    assert "train-00000" not in ids(alone)
    assert len(alone.hits) == 159
    one, other = ids(alone)[0], ids(alone)[-1]
    pushed = searcher.search(Query(like=("train-00000",), unlike=(one,), top_k=158))
    assert one not in ids(pushed)
    towards = searcher.search(Query(like=("train-00000", other), top_k=158))
    place = {
        name: {hit: place for place, hit in enumerate(ids(found))} for name, found in (("a", alone), ("b", towards))
    }
    kin = [hit for hit in ids(towards) if hit[-1:] != "0" and int(hit[6:]) % 4 == int(other[6:]) % 4]
    assert np.mean([place["b"][hit] for hit in kin]) < np.mean([place["a"][hit] for hit in kin])
    away = searcher.search(Query(unlike=("train-00000",), top_k=5))
    assert all(int(hit[6:]) % 4 != 0 for hit in ids(away)), "the least like it are of another class"
    with pytest.raises(UserError, match="no product nosuch"):
        searcher.search(Query(like=("nosuch",)))


def test_what_it_was_taught_finds_more_of_it(search, command, run, tmp_path):
    images, targets = TinyDataModule(mean=[0.3], std=[0.3], val_size=32).load(train=False)
    for number in (targets == 2).nonzero()[:6, 0].tolist():
        Image.fromarray(images[number, 0].numpy()).save(tmp_path / f"{number}.png")
    assert command(teach_main, f"run={run.path}", "name=rather low", f"images={tmp_path}")[0] == 0
    status, out, _ = search("concept=rather low", "top_k=10", "format=json")
    assert status == 0
    assert [one["category"] for one in json.loads(out)].count("low") >= 8
    status, _, err = search("concept=rather high")
    assert status == 1
    assert "concept=rather high: there is no such concept. There are: rather low." in err


def test_words_alone_and_beside_a_picture(searcher, picture):
    found = searcher.search(Query(text="bottom", top_k=50))
    assert {hit.category for hit in found.hits} == {"bottom"}
    assert (found.matching, len(found.hits), found.hits[0].similarity) == (40, 40, None)
    both = searcher.search(Query(text="bottom", pictures=(picture[1],), top_k=160))
    order = ids(both)
    assert len(order) == 160
    alike = ids(searcher.search(Query(pictures=(picture[1],), top_k=160)))
    # By hand: the sum of 1 / (60 + rank) over both orders; "Light bottom" and "Dark bottom" are equally good.
    fused = {one: 1 / (61 + rank) for rank, one in enumerate(alike)}
    for one in ids(found):
        fused[one] += 1 / 61
    assert [round(fused[one], 9) for one in order] == sorted(
        (round(value, 9) for value in fused.values()), reverse=True
    )
    assert set(order[:40]) == set(ids(found)), "words come first"
    assert order[:40] == [one for one in alike if one in ids(found)], "and among these the picture decides"


def test_of_words_beside_a_picture_as_many_match_as_can_be_seen(searcher, monkeypatch):
    monkeypatch.setattr("fashion_cnn.retrieval.searcher._FUSION_DEPTH", 20)
    found = searcher.search(Query(text="bottom", like=("train-00000",), top_k=160))
    assert 20 < found.matching == len(found.hits) < 160
    assert not searcher.search(Query(text="bottom", like=("train-00000",), offset=found.matching)).hits


def test_a_snapshot_that_nobody_has_any_more_is_gone_at_once(run):
    snapshot = Snapshot(Catalogue(str(run.catalogue)))
    snapshot.cache_thumbnails(10**9)
    assert len(snapshot.match_titles("bottom").rows)
    gone = weakref.ref(snapshot)
    gc.disable()
    try:
        del snapshot
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "words", ["' OR 1=1 --", '"', "\\", "a" * 5000, "(", "*", "title:x", "\0", "🙂", "AND NOT", "-"]
)
def test_no_words_are_a_query_language(searcher, words):
    assert searcher.search(Query(text=words, top_k=3)).matching == 0


def test_a_query_of_nothing_is_the_catalogue_from_its_start(searcher):
    found = searcher.search(Query(top_k=3, offset=1))
    assert (ids(found), found.matching) == (["train-00001", "train-00002", "train-00003"], 160)


@pytest.mark.parametrize(
    ("asked", "expected"),
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
def test_conditions_hold_in_memory_and_in_the_store_alike(searcher, run, asked, expected):
    table = searcher.snapshot.attributes
    wanted = parse_conditions(asked, table.schema)
    right = [row["id"] for row in table.to_pylist() if expected(row)]
    found = searcher.search(Query(like=("train-00003",), conditions=wanted, top_k=500))
    assert sorted([*ids(found), *({"train-00003"} & set(right))]) == right
    if wanted:
        together = wanted[0].expression()
        for other in wanted[1:]:
            together = together & other.expression()
        assert isinstance(together, Expr)
        stored = Catalogue(str(run.catalogue)).open().search().where(together).select(["id"]).to_arrow()
        assert sorted(stored["id"].to_pylist()) == right


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"colour": "red"}, "no column colour to filter by: use one of title, category, price"),
        ({"vector": [1]}, "no column vector"),
        ({"price": "cheap"}, "price=cheap is not possible: the column holds double"),
        ({"price": {"least": 1}}, "least is not a bound"),
        ({"price": {"min": 50, "max": 10}}, "price: min=50.0 is above max=10.0"),
    ],
)
def test_conditions_that_mean_nothing_are_told(searcher, asked, said):
    with pytest.raises(UserError, match=said):
        parse_conditions(asked, searcher.snapshot.attributes.schema)


def test_a_column_that_is_null_meets_no_condition():
    table = pa.table({"price": [1.0, None, 3.0]})
    (condition,) = parse_conditions({"price": {"max": 2}}, table.schema)
    assert condition.mask(table).tolist() == [True, False, False]


def test_near_duplicates_are_groups_by_links():
    angles = torch.tensor([0.0, 2.0, 0.1, 2.05, 0.2, 4.0])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    # Each link spans 0.1 at most; the ends of the first group are 0.2 apart.
    assert near_duplicates(vectors, float(np.cos(0.11))) == [[0, 2, 4], [1, 3]]
    assert near_duplicates(vectors, 0.99999) == []


def test_near_duplicates_across_blocks(monkeypatch):
    monkeypatch.setattr("fashion_cnn.retrieval.searcher._BLOCK_ROWS", 3)
    vectors = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors[7] = vectors[19] = vectors[2].clone()
    vectors[11] = vectors[0].clone()
    assert near_duplicates(vectors, 0.99999) == [[2, 7, 19], [0, 11]]


def test_the_command_answers_in_a_table_in_json_and_on_a_sheet(search, picture, tmp_path):
    path, _ = picture
    status, out, err = search(f"image={path}", "top_k=2", "category=middle")
    assert (status, err) == (0, "")
    assert out.count("middle") >= 4
    sheet = tmp_path / "sheet.png"
    status, out, err = search(f"image={path}", "top_k=2", "format=json", f"sheet={sheet}")
    records = json.loads(out)
    assert [*records[0]] == ["id", "title", "category", "price", "similarity", "seen_as", "confidence", "tone"]
    assert err == f"Contact sheet: {sheet}\n"
    with Image.open(sheet) as drawn:
        assert drawn.width > 500
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


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "The query is empty"),
        (["image=nosuch.png"], 1, "image=nosuch.png does not exist"),
        (["text=x", "duplicates=0.9"], 2, "omit text="),
        (["duplicates=2"], 2, "duplicates=2"),
        (["text=x", "top_k=0"], 2, "top_k=0"),
        (["text=x", "price=5"], 2, "price=5 is not [min,max]"),
        (["text=x", "price=[dear,null]"], 1, "price=dear is not possible"),
        (["text=x", "where=red"], 2, "where=red names no column"),
        (["text=x", "where={colour:red}"], 1, "There is no column colour"),
        (["like=nosuch"], 1, "holds no product nosuch"),
        (["txt=x"], 2, "Did you mean text?"),
        (["text=x", "catalogue=nosuch/at all"], 1, "no catalogue at nosuch/at all"),
        (["text=x", "sheet=nosuch/x.png"], 1, "sheet=nosuch/x.png cannot be written"),
    ],
)
def test_a_mistake_is_told_in_one_line(search, arguments, status, said):
    found, out, err = search(*arguments)
    assert found == status
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


def test_a_broken_picture_is_told(search, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    status, _, err = search(f"image={broken}")
    assert status == 1
    assert "broken.png: is not a picture: it holds text" in err


def test_the_catalogue_of_another_network_is_refused(command, run, tmp_path):
    overrides = [*TINY_DATA, f"runs_dir='{tmp_path}'", "callbacks=essential", "seed=5", "trainer.max_epochs=1"]
    other = train(compose(overrides=overrides))["run"]
    status, _, err = command(main, f"run={other}", f"catalogue={run.catalogue}", "text=x")
    assert status == 1
    assert f"search with run={run.path}, or index again with this run and rebuild=true" in err


def test_without_a_run_it_is_the_catalogues_own_or_the_newest_with_one(command, run, tmp_path):
    overrides = [*TINY_DATA, f"runs_dir='{run.path.parent.parent}'", "callbacks=essential", "trainer.max_epochs=1"]
    other = Path(train(compose(overrides=overrides))["run"])
    searched = (f"runs_dir={run.path.parent.parent}", "text=bottom", "top_k=1", "format=json")
    status, out, err = command(main, *searched)
    assert (status, len(json.loads(out))) == (0, 1)
    assert f"The newest run with a catalogue: {run.path}" in err
    elsewhere = tmp_path / "nothing here"
    status, out, err = command(main, f"runs_dir={elsewhere}", f"catalogue={run.catalogue}", "text=bottom", "top_k=1")
    assert (status, err) == (0, "")
    # Of an indexing that was stopped.
    (other / "catalogue" / "staging.lance").mkdir(parents=True)
    assert f"The newest run with a catalogue: {run.path}" in command(main, *searched)[2]
    status, _, err = command(main, f"runs_dir={elsewhere}", "text=bottom")
    assert (status, err.count("\n")) == (1, 1)
    assert "There is no finished run in" in err
