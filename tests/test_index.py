"""`python -m fashion_cnn.index`: products of a shop into a catalogue, changed ones alone, and never half."""

import io
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from conftest import REPOSITORY, TINY_DATA
from PIL import Image

from fashion_cnn.cli.main import compose
from fashion_cnn.errors import UserError
from fashion_cnn.index import main
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.inference.predictor import Predictor
from fashion_cnn.predict import main as predict_main
from fashion_cnn.retrieval.catalogue import Catalogue
from fashion_cnn.retrieval.indexing import index_products
from fashion_cnn.retrieval.products import encode_thumbnail
from fashion_cnn.retrieval.searcher import Query, Searcher, SearchHits
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.tables import products_from_files
from fashion_cnn.retrieval.web.developer import project
from fashion_cnn.retrieval.web.state import CatalogueView
from fashion_cnn.runs import Run
from fashion_cnn.search import main as search_main
from fashion_cnn.serve import main as serve_main
from fashion_cnn.teach import main as teach_main
from fashion_cnn.train import train

COMMANDS_OF_ONE_RUN = [
    (main, []),
    (serve_main, []),
    (search_main, ["text=x"]),
    (teach_main, []),
]


def trained(folder, *overrides):
    arguments = [*TINY_DATA, f"runs_dir='{folder}'", "trainer.max_epochs=1", "callbacks=essential", *overrides]
    return Run(Path(train(compose(overrides=arguments))["run"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def shop(tmp_path):
    """Six pictures in two folders, one of them no picture."""
    folder = tmp_path / "shop"
    rng = np.random.default_rng(0)
    for name in ("shirts/blue_shirt-1", "shirts/red shirt", "bags/bag", "bags/sack", "loose"):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    (folder / "bags" / "broken.jpg").write_bytes(b"\xff\xd8\xffno")
    return folder


@pytest.fixture
def indexed(command, run, tmp_path):
    """Index into the test's own catalogue; the status, the outputs, and the catalogue's rows by id."""

    def call(*arguments):
        uri = str(tmp_path / "catalogue")
        status, out, err = command(main, f"run={run.path}", f"catalogue={uri}", *map(str, arguments))
        catalogue = Catalogue(uri)
        table = catalogue.open().to_arrow().to_pylist() if catalogue.exists() else []
        return status, out, err, {row["id"]: row for row in table}

    return call


def test_a_folder_becomes_products_and_what_is_no_picture_is_told(indexed, shop):
    status, out, err, rows = indexed(f"images={shop}")
    assert status == 1
    assert "5 products added" in out
    assert f"bags/broken.jpg: {shop / 'bags/broken.jpg'} is damaged" in err
    assert "The pictures of 1 of 6 products could not be read: their entries in the catalogue, if any," in err
    assert rows.keys() == {
        *("shirts/blue_shirt-1.png", "shirts/red shirt.png", "bags/bag.png", "bags/sack.png", "loose.png")
    }
    shirt = rows["shirts/blue_shirt-1.png"]
    assert (shirt["title"], shirt["category"], shirt["price"]) == ("blue shirt 1", "shirts", None)
    assert rows["loose.png"]["category"] == rows["loose.png"]["seen_as"], "where nobody says, the network does"
    assert np.linalg.norm(shirt["vector"]) == pytest.approx(1, abs=1e-5)
    assert shirt["thumbnail"].startswith(b"\xff\xd8\xff")


def test_a_thumbnail_keeps_what_is_transparent():
    clear = Image.new("RGBA", (400, 200), (0, 0, 0, 0))
    with Image.open(io.BytesIO(encode_thumbnail(clear))) as small:
        assert (small.format, small.size, small.getchannel("A").getextrema()) == ("WEBP", (192, 96), (0, 0))
    with Image.open(io.BytesIO(encode_thumbnail(clear.convert("RGB")))) as small:
        assert (small.format, small.size) == ("JPEG", (192, 96))


def test_typed_again_it_looks_at_what_changed_alone(indexed, shop):
    (shop / "bags" / "broken.jpg").unlink()
    indexed(f"images={shop}")
    _, out, _, before = indexed(f"images={shop}")
    assert "0 products added, 0 changed, 0 removed, 5 unchanged" in out
    Image.new("RGB", (20, 20), (200, 0, 0)).save(shop / "loose.png")
    Image.new("RGB", (20, 20), (0, 200, 0)).save(shop / "new.png")
    (shop / "bags" / "sack.png").unlink()
    status, out, _, after = indexed(f"images={shop}")
    assert status == 0
    assert "1 product added, 1 changed, 0 removed, 3 unchanged" in out
    assert "In the catalogue, but not among these: 1 product, such as bags/sack.png. Remove them with prune=true" in out
    assert after["loose.png"]["vector"] != before["loose.png"]["vector"]
    assert after["bags/bag.png"] == before["bags/bag.png"]
    assert "bags/sack.png" in after
    _, out, _, pruned = indexed(f"images={shop}", "prune=true")
    assert "1 removed" in out
    assert pruned.keys() == after.keys() - {"bags/sack.png"}


def test_products_are_taken_out_by_their_ids(indexed, shop):
    indexed(f"images={shop}")
    status, out, _, rows = indexed("remove=loose.png")
    assert (status, len(rows)) == (0, 4)
    assert "1 product removed" in out
    status, _, err, rows = indexed("remove=['bags/bag.png',nosuch,\"' OR 1=1 --\"]")
    assert (status, len(rows)) == (1, 3)
    assert "The catalogue held only 1 of 3 ids." in err


def write_csv(path, *lines):
    path.write_text("\n".join(["id,title,category,price,image,colour,stock", *lines]) + "\n")
    return path


def test_a_table_says_what_the_products_are(indexed, shop, tmp_path):
    table = write_csv(
        tmp_path / "shop.csv",
        '007,"Shirt, blue",Shirts,19.90,shirts/blue_shirt-1.png,blue,3',
        "8,Bag,,,bags/bag.png,,",
        "9,Gone,Bags,5,bags/nosuch.png,black,1",
    )
    status, _, err, rows = indexed(f"images={shop}", f"products={table}")
    assert status == 1
    assert f"9: {shop / 'bags/nosuch.png'} cannot be read (No such file or directory)" in err
    assert rows.keys() == {"007", "8"}
    shirt, bag = rows["007"], rows["8"]
    assert [shirt[n] for n in ("title", "category", "price", "colour", "stock")] == [
        "Shirt, blue",
        "Shirts",
        19.9,
        "blue",
        3,
    ]
    assert (bag["category"], bag["price"], bag["stock"]) == (bag["seen_as"], None, None)
    # A price that changed is a product that changed; a column that is new is filled where it is known.
    parquet = tmp_path / "shop.parquet"
    columns = {
        "id": ["007"],
        "title": ["Shirt, blue"],
        "price": [15],
        "image": ["shirts/blue_shirt-1.png"],
        "new": [True],
    }
    pyarrow.parquet.write_table(pa.table(columns), parquet)
    status, out, _, rows = indexed(f"images={shop}", f"products={parquet}")
    assert status == 0
    assert "0 products added, 1 changed" in out
    assert (rows["007"]["price"], rows["007"]["new"], rows["8"]["new"]) == (15.0, True, None)


def test_a_table_is_read_as_shops_write_it(indexed, shop, tmp_path):
    """Sizes that are numbers at first, names that programs take for nothing, texts of several lines."""
    lines = [f'{number},"a title,\nin two lines",{number % 50},loose.png' for number in range(50_000)]
    table = tmp_path / "shop.csv"
    table.write_text("\n".join(["id,title,size,image", *lines, "NA,null,XL,loose.png", 'nan,"",NA,loose.png']) + "\n")
    read = products_from_files(str(shop), str(table), lambda *_: None).table
    last = read.slice(50_000).to_pylist()
    assert [row["id"] for row in last] == ["NA", "nan"]
    assert [row["title"] for row in last] == ["null", "nan"], "without a title it is the id"
    assert [row["size"] for row in last] == ["XL", "NA"]
    assert read["size"][7].as_py() == "7"
    assert read["title"][7].as_py() == "a title,\nin two lines"


def test_a_column_that_says_nothing_any_more_is_told_and_goes(indexed, shop, tmp_path):
    table = tmp_path / "shop.csv"
    table.write_text("id,price,colour\nloose,5,red\n")
    assert indexed(f"images={shop}", f"products={table}")[0] == 0
    table.write_text("id,prise,colour\nloose,5,red\n")
    status, out, _, rows = indexed(f"images={shop}", f"products={table}")
    assert status == 0
    assert "No product has a price any more: check the heading" in out
    assert (rows["loose"]["price"], rows["loose"]["prise"]) == (None, 5)
    table.write_text("id,price,colour\nloose,5,red\n")
    rows = indexed(f"images={shop}", f"products={table}")[3]
    assert rows["loose"]["price"] == 5
    assert "prise" not in rows["loose"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,title\n1,a\n1,b\n", "repeats 1 ids, such as 1"),
        ("id,title\n,a\n", "1 rows have no id, the first is row 1"),
        ("name\na\n", "has no column id, but name"),
        ("id;title\n1;a\n", "has no column id, but id;title: each product needs an id. The columns are separated by ;"),
        ("id,picture\n1,a.png\n", "has no column image, and no picture in"),
        ("id\n", "holds no product"),
        ("", "cannot be read"),
        ("id,price\n1,2\n7,cheap\n", "row 2 (id 7): price=cheap is not a number like 14.40"),
        (b"id,title\n1,caf\xe9\n", "is not UTF-8 (byte 14)"),
        ("id,a,a\n1,2,3\n", "repeats 1 headings, such as a: each has to be unique"),
        ("id,size.eu\n1,2\n", "has a column size.eu: rename it without . and `"),
        ("id,size`eu\n1,2\n", "has a column size`eu: rename it without . and `"),
        ("id,_rowid\n1,2\n", "has a column _rowid, which LanceDB reserves: rename it"),
        ("id,*\n1,2\n", "has a column *, which LanceDB reserves: rename it"),
        ("id,,title\n1,red,2\n2,red,3\n", "column 2 has no heading: add one, or remove the column"),
        ("id,similarity\n1,2\n", "a column similarity, which the catalogue fills in itself"),
        ("id,vector\n1,2\n", "a column vector, which the catalogue fills in itself"),
    ],
)
def test_a_table_that_cannot_be_used_is_told_and_nothing_begun(indexed, tmp_path, content, said):
    table = tmp_path / "shop.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, _, err, rows = indexed(f"products={table}")
    assert (status, err.count("\n")) == (1, 1)
    assert said in err
    assert f"cannot be read ({table}" not in err, "one reason"
    assert not rows
    assert not (tmp_path / "catalogue" / "products.lance").exists()


def test_of_parquet_that_cannot_be_read_the_reason_is_told(indexed, tmp_path):
    (tmp_path / "shop.parquet").write_bytes(b"PAR1\xe9\xff no more")
    status, _, err, _ = indexed(f"products={tmp_path / 'shop.parquet'}")
    assert (status, err.count("\n")) == (1, 1)
    assert "shop.parquet cannot be read (Could not open Parquet input source" in err


def test_the_row_numbers_of_pandas_and_empty_columns_are_left_out(indexed, shop, tmp_path):
    (tmp_path / "shop.csv").write_text(",id,title,,\n0,loose,A title,,\n7,bags/bag,A bag,,\n")
    status, _, err, rows = indexed(f"images={shop}", f"products={tmp_path / 'shop.csv'}")
    assert status == 1
    assert "bags/bag cannot be read" in err
    assert (rows["loose"]["title"], "" in rows["loose"]) == ("A title", False)


def test_columns_of_pandas_and_polars_are_plain_in_the_catalogue(indexed, shop, tmp_path):
    columns = {
        "id": pa.array(["loose"], pa.large_string()),
        "colour": pa.array(["red"]).dictionary_encode(),
        "size": pa.array([4]).dictionary_encode(),
        "brand": pa.array(["a brand"], pa.large_string()),
        "material": pa.nulls(1),
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "shop.parquet")
    assert indexed(f"images={shop}", f"products={tmp_path / 'shop.parquet'}")[0] == 0
    schema = Catalogue(str(tmp_path / "catalogue")).open().schema
    assert [schema.field(name).type for name in columns] == [*[pa.string()] * 2, pa.int64(), *[pa.string()] * 2]
    (tmp_path / "shop.csv").write_text("id,colour,material\nloose,red,wool\n")
    status, _, _, rows = indexed(f"images={shop}", f"products={tmp_path / 'shop.csv'}")
    assert (status, rows["loose"]["material"]) == (0, "wool")


def test_a_catalogue_may_lie_at_an_address(command, run, shop, tmp_path):
    arguments = (f"run={run.path}", f"catalogue=file://{tmp_path / 'elsewhere'}", f"images={shop / 'bags' / 'bag.png'}")
    assert "1 product added" in command(main, *arguments)[1]
    assert "1 unchanged" in command(main, *arguments)[1]
    assert len(Snapshot(Catalogue(f"file://{tmp_path / 'elsewhere'}"))) == 1


def test_the_run_of_a_catalogue_is_known_wherever_a_search_is_typed(command, run, shop, tmp_path, monkeypatch):
    monkeypatch.chdir(run.path.parent)
    assert command(main, f"run={run.path.name}", f"catalogue={tmp_path}/c", f"images={shop / 'loose.png'}")[0] == 0
    monkeypatch.chdir(tmp_path)
    assert command(search_main, "catalogue=c", "text=loose")[::2] == (0, "")


def test_one_picture_is_a_product_of_its_name(indexed, shop):
    _, _, _, rows = indexed(f"images={shop / 'bags' / 'bag.png'}")
    assert [(row["id"], row["title"]) for row in rows.values()] == [("bag.png", "bag")]


def test_of_files_of_a_name_the_picture_is_the_products(indexed, shop, tmp_path):
    for suffix in ("csv", "txt"):
        (shop / f"loose.{suffix}").write_text("What we say of it.")
    (tmp_path / "shop.csv").write_text("id\nloose\n")
    assert indexed(f"images={shop}", f"products={tmp_path / 'shop.csv'}")[0] == 0


@pytest.mark.parametrize(
    ("main", "typed", "status", "said"),
    [
        (main, ["remove=", "catalogue={tmp}/nowhere"], 2, "remove= names no product"),
        (main, ["remove=[]", "catalogue={tmp}/nowhere"], 2, "remove= names no product"),
        (main, ["remove=a", "catalogue={tmp}/nowhere"], 1, "There is no catalogue at {tmp}/nowhere"),
        (main, ["images="], 2, "images= is empty"),
        (main, ["images=[]"], 2, "images= is empty"),
        (main, ["images={tmp}/odd", "catalogue="], 2, "catalogue= is empty"),
        (search_main, ["text=x", "catalogue="], 2, "catalogue= is empty"),
        (teach_main, ["name=x", "images="], 2, "images= is empty"),
        (main, ["images={tmp}/odd"], 1, "is not UTF-8 and cannot be an id: rename it"),
        *((one, ["run=[a,b]", *more], 2, "run=['a', 'b'] is not one run") for one, more in COMMANDS_OF_ONE_RUN),
    ],
)
def test_mistakes_are_told_in_one_message(command, run, tmp_path, main, typed, status, said):
    (tmp_path / "odd").mkdir()
    with (tmp_path / "odd" / os.fsdecode(b"caf\xe9.png")).open("wb") as file:
        Image.new("L", (28, 28)).save(file, "PNG")
    found = command(main, f"run={run.path}", *(one.format(tmp=tmp_path) for one in typed))
    assert (found[0], found[2].count("\n")) == (status, 1)
    assert said.format(tmp=tmp_path) in found[2]
    assert not (tmp_path / "nowhere").exists()


def test_a_column_of_another_type_is_refused(indexed, shop, tmp_path):
    table = write_csv(tmp_path / "shop.csv", "1,Shirt,,,loose.png,blue,3")
    assert indexed(f"images={shop}", f"products={table}")[0] == 0
    write_csv(tmp_path / "shop.csv", "1,Shirt,,,loose.png,blue,many")
    status, _, err, rows = indexed(f"images={shop}", f"products={table}")
    assert status == 1
    assert "Column stock now holds text, but integers in" in err
    write_csv(tmp_path / "shop.csv", "1,Shirt,,,loose.png,blue,3.5")
    status, _, err, rows = indexed(f"images={shop}", f"products={table}")
    assert status == 1
    assert "Column stock now holds decimal numbers, but integers in" in err
    assert rows["1"]["stock"] == 3


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_columns_keep_their_types_where_a_week_says_less(indexed, shop, tmp_path, form):
    """A column that is blank this week, whole numbers where there were fractions, sizes that are all numbers."""
    file = tmp_path / f"shop.{form}"

    def indexed_again(**columns):
        table = pa.table({"id": ["loose"], **columns})
        (pyarrow.csv.write_csv if form == "csv" else pyarrow.parquet.write_table)(table, file)
        status, out, err, rows = indexed(f"images={shop}", f"products={file}")
        assert (status, err) == (0, "")
        return out, [rows["loose"][name] for name in columns]

    assert indexed_again(stock=[3], weight=[0.5], sold=[True])[1] == [3, 0.5, True]
    file.unlink()
    nothing = pa.nulls(1)
    assert indexed_again(stock=nothing, weight=[2], sold=[True], new=["x"])[1] == [None, 2.0, True, "x"]
    assert indexed_again(stock=[4], weight=nothing, sold=[False], new=["x"])[1] == [4, None, False, "x"]
    out, _ = indexed_again(stock=[4], weight=nothing, sold=[False], new=["x"])
    assert "1 unchanged" in out


def test_sizes_that_are_all_numbers_this_week_are_texts_as_before(indexed, shop, tmp_path):
    table = tmp_path / "shop.csv"
    for size in ("XL", "007"):
        table.write_text(f"id,size\nloose,{size}\n")
        status, _, err, rows = indexed(f"images={shop}", f"products={table}")
        assert (status, err, rows["loose"]["size"]) == (0, "", size)


def test_another_networks_catalogue_is_refused_and_rebuilt_where_asked(indexed, command, shop, tmp_path):
    (shop / "bags" / "broken.jpg").unlink()
    indexed(f"images={shop}")
    other = trained(tmp_path / "other", "seed=1")
    arguments = (f"run={other.path}", f"catalogue={tmp_path / 'catalogue'}", f"images={shop / 'bags'}")
    status, _, err = command(main, *arguments)
    assert status == 1
    assert "was indexed with another network" in err
    assert "rebuild=true" in err
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    before = Snapshot(catalogue)
    status, out, _ = command(main, *arguments, "rebuild=true")
    assert status == 0
    assert "2 products added" in out
    assert len(before) == 5
    assert len(before.thumbnails([0, 4])) == 2, "whoever has the version of before goes on with it"
    assert set(catalogue.content_keys()) == {"bag.png", "sack.png"}
    assert Snapshot(catalogue).metadata.network == TrainedNetwork(other, flip_average=True).identity


@pytest.mark.parametrize(
    ("option", "value"), [("flip_average", "false"), ("invert", "always"), ("class_weight", "0.5")]
)
def test_a_catalogue_of_pictures_that_were_looked_at_otherwise_is_refused(indexed, shop, option, value):
    indexed(f"images={shop / 'bags'}", f"{option}={value}")
    status, _, err, rows = indexed(f"images={shop / 'shirts'}")
    assert status == 1
    assert f"was indexed with {option}={value}: use the same value, or rebuild=true" in err
    assert rows.keys() == {"bag.png", "sack.png"}


@pytest.mark.parametrize("main", [main, teach_main, predict_main])
def test_a_way_to_invert_that_is_none_is_told_by_every_command(command, main):
    status, _, err = command(main, "images=nowhere", *(["name=x"] if main is teach_main else []), "invert=sometimes")
    assert status == 2
    assert "invert=sometimes is not possible: choose auto, never, always." in err


@pytest.mark.parametrize("value", ["1.5", "-0.1"])
def test_a_weight_that_is_no_share_is_told(command, value):
    status, _, err = command(main, f"class_weight={value}")
    assert status == 2
    assert "is not possible: give a number from 0 to 1." in err


def test_the_images_of_the_runs_own_data_are_products_too(run, tmp_path, monkeypatch, command):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests"))
    status, out, err = command(main, f"run={run.path}", f"catalogue={tmp_path / 'own'}")
    assert (status, err) == (0, "")
    assert "160 products added" in out
    rows = Catalogue(str(tmp_path / "own")).open().to_arrow().sort_by("id").to_pylist()
    assert [row["category"] for row in rows[:4]] == ["top", "middle", "low", "bottom"]
    assert rows[0]["thumbnail"].startswith(b"\x89PNG")


def test_a_data_sets_images_and_a_shops_products_are_kept_apart(indexed, shop, tmp_path):
    (shop / "bags" / "broken.jpg").unlink()
    assert indexed()[0] == 0
    status, _, err, rows = indexed(f"images={shop}")
    assert (status, len(rows)) == (1, 160)
    assert "holds images of a data set with made-up prices, the new products are products of a shop" in err
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    (shop / "bags" / "broken.jpg").write_bytes(b"no picture")
    status, _, err, rows = indexed(f"images={shop}", "rebuild=true")
    assert (status, len(rows)) == (1, 5)
    assert "1 of 6 products could not be read: they are missing in the rebuilt catalogue." in err
    assert Snapshot(catalogue).metadata.note == ""
    assert "holds products of a shop, the new products are images of a data set" in indexed()[2]


@pytest.mark.parametrize("name", ["staging", "products"])
@pytest.mark.parametrize("rebuild", ["false", "true"])
def test_tables_of_other_programs_are_left_alone(command, run, shop, tmp_path, name, rebuild):
    theirs = lancedb.connect(tmp_path / "theirs").create_table(name, pa.table({"id": ["a"], "key": ["b"]}))
    arguments = (f"run={run.path}", f"catalogue={tmp_path / 'theirs'}")
    status, _, err = command(main, *arguments, f"images={shop}", f"rebuild={rebuild}")
    assert status == 1
    assert f"The table {name} in {tmp_path / 'theirs'} was not made by fashion_cnn.index" in err
    assert command(main, *arguments, "remove=a")[0] == 1
    assert lancedb.connect(tmp_path / "theirs").open_table(name).to_arrow() == theirs.to_arrow()


def test_where_no_picture_can_be_read_there_is_no_catalogue(indexed, shop, tmp_path):
    for file in (shop / "bags").glob("*.png"):
        file.unlink()
    status, _, err, _ = indexed(f"images={shop / 'bags'}")
    assert (status, err.count("\n")) == (1, 1)
    assert "None of 1 pictures could be read, such as broken.jpg:" in err
    assert not Catalogue(str(tmp_path / "catalogue")).exists()


def test_a_catalogue_of_no_product_is_searched_in_vain(indexed, run, shop, tmp_path):
    assert indexed(f"images={shop / 'loose.png'}")[0] == 0
    assert "1 product removed" in indexed("remove=loose.png")[1]
    snapshot = Snapshot(Catalogue(str(tmp_path / "catalogue")))
    searcher = Searcher(snapshot, TrainedNetwork(run, flip_average=True))
    picture = torch.zeros(searcher.network.preparation.image_shape, dtype=torch.uint8)
    for query in (Query(text="shirt"), Query(pictures=(picture,)), Query(text="shirt", pictures=(picture,)), Query()):
        assert searcher.search(query) == SearchHits((), 0)
    assert project(snapshot).sampled == 0
    CatalogueView(searcher, Predictor(searcher.network))


def test_a_second_indexing_at_once_is_refused_before_its_work(run, shop, tmp_path):
    network, catalogue = TrainedNetwork(run), Catalogue(str(tmp_path / "catalogue"))
    products = products_from_files(str(shop), None, lambda *_: None)
    refused = []

    def another(done, total):
        with pytest.raises(UserError, match=r"Another process is indexing into .*: try again") as error:
            index_products(products, Catalogue(catalogue.uri), network)
        refused.append(error)

    assert index_products(products, catalogue, network, progress=another).added == 5
    assert refused


class Killed(BaseException):
    pass


def test_an_interrupted_indexing_leaves_the_catalogue_and_goes_on(run, shop, tmp_path, monkeypatch):
    (shop / "bags" / "broken.jpg").unlink()
    network, catalogue = TrainedNetwork(run), Catalogue(str(tmp_path / "catalogue"))
    monkeypatch.setattr("fashion_cnn.retrieval.indexing._STAGING_BATCH", 2)
    index_products(products_from_files(str(shop / "bags"), None, lambda *_: None), catalogue, network)
    before = catalogue.open().to_arrow()
    products = products_from_files(str(shop), None, lambda *_: None)

    def stop(done, total):
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        index_products(products, catalogue, network, progress=stop)
    assert catalogue.open().to_arrow() == before
    looked_at = []
    outputs = network.outputs
    monkeypatch.setattr(network, "outputs", lambda images: looked_at.append(len(images)) or outputs(images))
    # A run that is called by another path is the same one.
    network.run = Run(run.path.parent / "." / ".." / run.path.parent.name / run.path.name)
    assert network.run.path != run.path
    done = index_products(products, catalogue, network)
    assert sum(looked_at) == 1, "four of the five were looked at before"
    assert (done.added, done.missing) == (5, ("bag.png", "sack.png"))


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("tagged", [True, False], ids=["", "made before there were tags"])
def test_readers_see_what_an_indexing_did_when_it_is_at_its_end(run, shop, tmp_path, monkeypatch, rebuild, tagged):
    network, catalogue = TrainedNetwork(run), Catalogue(str(tmp_path / "catalogue"))
    index_products(products_from_files(str(shop / "shirts"), None, lambda *_: None), catalogue, network)
    if not tagged:
        catalogue.open_latest().tags.delete("ready")
    before = catalogue.table_version()
    bags = products_from_files(str(shop / "bags"), None, lambda *_: None)

    def stop(*_):
        raise Killed

    with monkeypatch.context() as patch:
        # The last that is done, when all products are in the table.
        patch.setattr("fashion_cnn.retrieval.indexing.update_vector_index", stop)
        with pytest.raises(Killed):
            index_products(bags, catalogue, network, prune=True, rebuild=rebuild)
    assert set(catalogue.content_keys()) == {"bag.png", "sack.png"}
    there = Snapshot(Catalogue(catalogue.uri))
    assert there.table_version == catalogue.table_version() == before
    assert len(there.match_titles("shirt").rows) == len(there) == len(there.thumbnails([0, 1])) == 2
    done = index_products(bags, catalogue, network, prune=True)
    after = Snapshot(catalogue)
    assert (set(after.row_by_id), after.version) == ({"bag.png", "sack.png"}, done.version)
    assert after.version == catalogue.open_latest().version, "nothing is done beyond what readers see"
    assert len(after.match_titles("sack").rows) == 1


def test_a_catalogue_that_is_changed_seldom_is_changed(run, shop, tmp_path, monkeypatch):
    """When the version of the last time is older than what is kept."""
    network, catalogue = TrainedNetwork(run), Catalogue(str(tmp_path / "catalogue"))
    index_products(products_from_files(str(shop / "shirts"), None, lambda *_: None), catalogue, network)
    first = catalogue.table_version().version
    monkeypatch.setattr("fashion_cnn.retrieval.catalogue._VERSION_LIFETIME", timedelta(milliseconds=1))
    index_products(products_from_files(str(shop / "bags"), None, lambda *_: None), catalogue, network, prune=True)
    assert set(Snapshot(catalogue).row_by_id) == {"bag.png", "sack.png"}
    assert first not in [version["version"] for version in catalogue.open_latest().list_versions()], "cleaned up"


def test_a_stop_says_whether_the_catalogue_is_as_it_was(indexed, shop, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fashion_cnn.retrieval.indexing.update_vector_index", stop)
        status, _, err, rows = indexed(f"images={shop / 'shirts'}")
        assert (status, len(rows)) == (130, 2)
        assert "Stopped. The products are in the catalogue: run the command again to finish." in err
    assert indexed(f"images={shop / 'shirts'}")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("fashion_cnn.retrieval.indexing.update_vector_index", stop)
        _, _, err, rows = indexed(f"images={shop / 'loose.png'}")
        assert "Stopped. The catalogue is unchanged: run the command again to resume." in err
        assert "loose.png" not in rows


@pytest.mark.slow
@pytest.mark.parametrize(("after", "delay"), [("begun", 0.1), ("1", 0.0), ("1", 0.3), ("1", 1.1)])
def test_a_kill_at_any_time_leaves_a_whole_catalogue(run, tmp_path, after, delay):
    """A process that adds a product and changes another again and again is killed; what it confirmed is there."""
    folder, uri = tmp_path / "pictures", tmp_path / "catalogue"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(31):
        Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(folder / f"{number:02}.png")
    code = f"""
from pathlib import Path
from PIL import Image
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.retrieval.catalogue import Catalogue
from fashion_cnn.retrieval.tables import products_from_files
from fashion_cnn.retrieval.indexing import index_products
from fashion_cnn.runs import Run
network, catalogue = TrainedNetwork(Run(Path({str(run.path)!r}))), Catalogue({str(uri)!r})
print("begun", flush=True)
for count in range(1, 31):
    files = [str(file) for file in sorted(Path({str(folder)!r}).iterdir())[:count + 1]]
    Image.new("L", (20, 20), 8 * count).save(files[0])
    index_products(products_from_files(files, None, lambda *_: None), catalogue, network)
    print(count, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while (said := process.stdout.readline().strip()) != after:
            assert said
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
    confirmed = int(rest[-1] if rest else said.replace("begun", "0"))
    network, catalogue = TrainedNetwork(run), Catalogue(str(uri))
    there = 0
    if confirmed or catalogue.exists():
        snapshot = Snapshot(catalogue)
        there = len(snapshot)
        assert confirmed <= there - 1 <= confirmed + 1
        (changed,) = (row for one, row in snapshot.row_by_id.items() if one.endswith("00.png"))
        shade = np.asarray(Image.open(io.BytesIO(snapshot.thumbnails(range(there))[changed]))).mean() / 8
        assert round(shade) == there - 1, "both in one transaction"
    index_products(products_from_files(str(folder), None, lambda *_: None), catalogue, network)
    # The first picture may be half, as the process that saved it was killed.
    assert (
        {f"{number:02}.png" for number in range(1, 31)}
        <= Snapshot(catalogue).row_by_id.keys()
        == set(catalogue.content_keys())
    )


def test_no_catalogue_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no catalogue at .*fashion_cnn.index makes one"):
        Catalogue(str(tmp_path)).open()


def test_without_lancedb_the_command_says_what_to_install(command, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    status, _, err = command(main)
    assert status == 1
    assert "This needs lancedb: pip install -c scripts/constraints.txt -e '.[search]'" in err
