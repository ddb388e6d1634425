"""`python -m fashion_cnn.index`: indexing of new and changed products in transactions."""

import gzip
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from conftest import PATIENCE, REPOSITORY, TINY_DATA, file_size_limit
from lancedb.embeddings import EmbeddingFunctionRegistry
from PIL import Image

from fashion_cnn.cli.main import compose
from fashion_cnn.cli.options import install_command
from fashion_cnn.errors import UserError
from fashion_cnn.index import main
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.inference.predictor import Predictor
from fashion_cnn.pictures import encode_thumbnail
from fashion_cnn.predict import main as predict_main
from fashion_cnn.retrieval.catalogue import Catalogue
from fashion_cnn.retrieval.indexing import index_products, put_product
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

SINGLE_RUN_COMMANDS = [
    (main, []),
    (serve_main, []),
    (search_main, ["text=x"]),
    (teach_main, []),
]


def train_run(folder, *overrides):
    arguments = [*TINY_DATA, f"runs_dir='{folder}'", "trainer.max_epochs=1", "callbacks=essential", *overrides]
    return Run(Path(train(compose(overrides=arguments))["run"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def shop(tmp_path):
    """Six files in two folders, one of them damaged."""
    folder = tmp_path / "shop"
    rng = np.random.default_rng(0)
    for name in ("shirts/blue_shirt-1", "shirts/red shirt", "bags/bag", "bags/sack", "loose"):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    (folder / "bags" / "broken.jpg").write_bytes(b"\xff\xd8\xffno")
    return folder


@pytest.fixture
def run_index(command, run, tmp_path):
    """Run the command; returns its status, its outputs and the rows of the catalogue by id."""

    def call(*arguments):
        uri = str(tmp_path / "catalogue")
        status, out, err = command(main, f"run={run.path}", f"catalogue={uri}", *map(str, arguments))
        catalogue = Catalogue(uri)
        table = catalogue.open().to_arrow().to_pylist() if catalogue.exists() else []
        return status, out, err, {row["id"]: row for row in table}

    return call


def test_a_folder_of_pictures_becomes_products_and_unreadable_files_are_reported(run_index, shop):
    status, out, err, rows = run_index(f"images={shop}")
    assert status == 3
    assert "5 products added" in out
    assert f"bags/broken.jpg: {shop / 'bags/broken.jpg'} is damaged" in err
    assert "The pictures of 1 of 6 products could not be read: their entries in the catalogue, if any," in err
    assert rows.keys() == {
        *("shirts/blue_shirt-1.png", "shirts/red shirt.png", "bags/bag.png", "bags/sack.png", "loose.png")
    }
    shirt = rows["shirts/blue_shirt-1.png"]
    assert (shirt["title"], shirt["category"], shirt["price"]) == ("blue shirt 1", "shirts", None)
    assert rows["loose.png"]["category"] == rows["loose.png"]["seen_as"], "the predicted class is the default"
    assert np.linalg.norm(shirt["vector"]) == pytest.approx(1, abs=1e-5)
    assert shirt["thumbnail"].startswith(b"\xff\xd8\xff")


def test_a_thumbnail_keeps_transparency():
    clear = Image.new("RGBA", (400, 200), (0, 0, 0, 0))
    with Image.open(io.BytesIO(encode_thumbnail(clear))) as small:
        assert (small.format, small.size, small.getchannel("A").getextrema()) == ("WEBP", (192, 96), (0, 0))
    with Image.open(io.BytesIO(encode_thumbnail(clear.convert("RGB")))) as small:
        assert (small.format, small.size) == ("JPEG", (192, 96))


@pytest.mark.slow
def test_indexing_again_embeds_only_changed_products(run_index, shop):
    (shop / "bags" / "broken.jpg").unlink()
    run_index(f"images={shop}")
    _, out, _, before = run_index(f"images={shop}")
    assert "0 products added, 0 changed, 0 removed, 5 unchanged" in out
    Image.new("RGB", (20, 20), (200, 0, 0)).save(shop / "loose.png")
    Image.new("RGB", (20, 20), (0, 200, 0)).save(shop / "new.png")
    (shop / "bags" / "sack.png").unlink()
    status, out, _, after = run_index(f"images={shop}")
    assert status == 0
    assert "1 product added, 1 changed, 0 removed, 3 unchanged" in out
    assert "In the catalogue, but not among these: 1 product, such as bags/sack.png. Remove them with prune=true" in out
    assert after["loose.png"]["vector"] != before["loose.png"]["vector"]
    assert after["bags/bag.png"] == before["bags/bag.png"]
    assert "bags/sack.png" in after
    _, out, _, pruned = run_index(f"images={shop}", "prune=true")
    assert "1 removed" in out
    assert pruned.keys() == after.keys() - {"bags/sack.png"}


def test_products_are_removed_by_id(run_index, shop):
    run_index(f"images={shop}")
    status, out, _, rows = run_index("remove=loose.png")
    assert (status, len(rows)) == (0, 4)
    assert "1 product removed" in out
    status, _, err, rows = run_index("remove=['bags/bag.png',nosuch,\"' OR 1=1 --\"]")
    assert (status, len(rows)) == (1, 3)
    assert "The catalogue held only 1 of 3 ids." in err


def write_csv(path, *lines):
    path.write_text("\n".join(["id,title,category,price,image,colour,stock", *lines]) + "\n")
    return path


def test_a_table_describes_the_products(run_index, shop, tmp_path):
    table = write_csv(
        tmp_path / "shop.csv",
        '007,"Shirt, blue",Shirts,19.90,shirts/blue_shirt-1.png,blue,3',
        "8,Bag,,,bags/bag.png,,",
        "9,Gone,Bags,5,bags/nosuch.png,black,1",
    )
    status, _, err, rows = run_index(f"images={shop}", f"products={table}")
    assert status == 3
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
    # A new price changes the product. A new column is null for products that lack it.
    parquet = tmp_path / "shop.parquet"
    columns = {
        "id": ["007"],
        "title": ["Shirt, blue"],
        "price": [15],
        "image": ["shirts/blue_shirt-1.png"],
        "new": [True],
    }
    pyarrow.parquet.write_table(pa.table(columns), parquet)
    status, out, _, rows = run_index(f"images={shop}", f"products={parquet}")
    assert status == 0
    assert "0 products added, 1 changed" in out
    assert (rows["007"]["price"], rows["007"]["new"], rows["8"]["new"]) == (15.0, True, None)


@pytest.mark.parametrize(
    "image", ["../secret.png", "{tmp}/secret.png", "shirts/../../secret.png", "/etc/passwd", "shop/../secret.png/../.."]
)
@pytest.mark.parametrize("beside", [True, False], ids=["beside the table", "in images="])
def test_a_table_reads_no_picture_outside_its_folder(run_index, shop, tmp_path, image, beside):
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    (shop / "linked").symlink_to(tmp_path)
    table = (shop if beside else tmp_path) / "shop.csv"
    table.write_text(f"id,image\n1,loose.png\n2,{image.format(tmp=tmp_path)}\n")
    status, _, err, rows = run_index(f"products={table}", *([] if beside else [f"images={shop}"]))
    assert status == 1
    assert f"column image, row 2: {image.format(tmp=tmp_path)} is not below {shop}" in err
    assert "give images=DIR" in err
    assert rows == {}


def test_paths_in_a_table_may_lead_into_the_folder_of_the_pictures(run_index, shop, tmp_path):
    (tmp_path / "linked").symlink_to(shop)
    (tmp_path / "elsewhere.png").write_bytes((shop / "loose.png").read_bytes())
    (shop / "link.png").symlink_to(tmp_path / "elsewhere.png")
    images = [f"{shop}/loose.png", "../shop/bags/bag.png", "bags/../bags/sack.png", "link.png"]
    table = tmp_path / "shop.csv"
    table.write_text("".join(["id,image\n", *(f"{number},{image}\n" for number, image in enumerate(images))]))
    status, _, _, rows = run_index(f"products={table}", f"images={shop}")
    assert (status, len(rows)) == (0, 4)
    table.write_text(f"id,image\n5,{shop.resolve()}/loose.png\n6,{tmp_path}/linked/bags/bag.png\n")
    status, _, _, rows = run_index(f"products={table}", f"images={tmp_path / 'linked'}")
    assert (status, len(rows)) == (0, 6)


def test_an_id_without_a_column_image_names_no_picture_outside_the_folder(run_index, shop, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    (tmp_path / "shop.csv").write_text("id\nloose\n../secret.png\n")
    status, _, err, _ = run_index(f"images={shop}", f"products={tmp_path / 'shop.csv'}")
    assert status == 1
    assert "has no column image, and the id, row 2: ../secret.png is not below" in err


def test_a_named_pipe_in_a_table_is_reported(run_index, shop, tmp_path):
    os.mkfifo(shop / "pipe.png")
    table = write_csv(shop / "shop.csv", "1,Bag,,,bags/bag.png,,", "2,Pipe,,,pipe.png,,", "3,None,,,,,")
    status, _, err, rows = run_index(f"products={table}")
    assert status == 3
    assert f"2: {shop / 'pipe.png'} is not a regular file" in err
    assert rows.keys() == {"1"}
    os.mkfifo(tmp_path / "pipe.csv")
    status, _, err, _ = run_index(f"products={tmp_path / 'pipe.csv'}", f"images={shop}")
    assert status == 1
    assert "pipe.csv is not a regular file" in err


@pytest.mark.slow
def test_a_csv_keeps_text_such_as_null_and_sizes_that_start_as_numbers(run_index, shop, tmp_path):
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


@pytest.mark.slow
def test_escape_sequences_in_a_table_do_not_reach_the_terminal(run_index, command, run, shop, tmp_path):
    title = "\x1b]0;title\x07\x9b2J\u202e"
    table, heading = tmp_path / "shop.csv", "id,title,image,size\x1b[2J"
    table.write_text(f"{heading}\na{title},{title},loose.png,1\n")
    images = (f"products={table}", f"images={shop}")
    outputs = [run_index(*images)[:3]]
    for arguments in (["text=title"], ["text=title", "format=json"], [f"like=x{title}"], ["duplicates=0.5"]):
        outputs.append(command(search_main, f"catalogue={tmp_path / 'catalogue'}", f"run={run.path}", *arguments))
    table.write_text(f"{heading}\nb,{title},loose.png,\n")
    outputs.append(run_index(*images)[:3])
    assert [status for status, *_ in outputs] == [0, 0, 0, 1, 0, 0]
    assert not {*"".join(out + err for _, out, err in outputs)} & set("\x1b\x07\x9b\u202e")
    assert "\\x1b]0;title\\x07\\x9b2J\\u202e" in outputs[1][1]


@pytest.mark.slow
def test_a_column_that_became_empty_is_reported_and_dropped(run_index, shop, tmp_path):
    table = tmp_path / "shop.csv"
    table.write_text("id,price,colour\nloose,5,red\n")
    assert run_index(f"images={shop}", f"products={table}")[0] == 0
    table.write_text("id,prise,colour\nloose,5,red\n")
    status, out, _, rows = run_index(f"images={shop}", f"products={table}")
    assert status == 0
    assert "No product has a price any more: check the heading" in out
    assert (rows["loose"]["price"], rows["loose"]["prise"]) == (None, 5)
    table.write_text("id,price,colour\nloose,5,red\n")
    rows = run_index(f"images={shop}", f"products={table}")[3]
    assert rows["loose"]["price"] == 5
    assert "prise" not in rows["loose"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,title\n1,a\n1,b\n1,c\n", "2 of 3 rows cannot be used, the first is row 2 (id 1): its id is in row 1 too"),
        ("id,title\n,a\n", "1 of 1 row cannot be used, the first is row 1: it has no id"),
        ("name\na\n", "has no column id, but name"),
        ("id,picture\n1,a.png\n", "has no column image, and no picture in"),
        ("id\n", "holds no product"),
        ("", "cannot be read"),
        ("id,price\n7,cheap\n", "the first is row 1 (id 7): price=cheap is not a number like 14.40"),
        (
            "id,price\n1,2,3\n2,3,4\n3,4\n",
            "2 of 3 rows cannot be used, the first is row 1: it has 3 columns instead of 2",
        ),
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
def test_an_invalid_table_is_reported_before_indexing_begins(run_index, tmp_path, content, message):
    table = tmp_path / "shop.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, _, err, rows = run_index(f"products={table}")
    assert (status, err.count("\n")) == (1, 1)
    assert message in err
    assert f"cannot be read ({table}" not in err, "one reason"
    assert not rows
    assert not (tmp_path / "catalogue" / "products.lance").exists()


def test_unusable_rows_are_left_out_and_listed(run_index, shop, tmp_path):
    table = tmp_path / "shop.csv"
    table.write_text("id,price,image\nkeep,1,loose.png\nbad,2,loose.png\n")
    arguments = (f"images={shop}", f"products={table}", "prune=true")
    assert run_index(*arguments)[0] == 0
    table.write_text(
        'id,price,image\nkeep,3,loose.png\n,4,loose.png\nbad,"about 5",loose.png\nkeep,6,loose.png\n'
        "wide,7,loose.png,8\nnew,9,loose.png\ngood,10,loose.png\nlast,11,loose.png\nother,12,bags/bag.png\n"
    )
    status, out, err, rows = run_index(*arguments)
    assert status == 3
    assert err.splitlines()[-5:] == [
        f"{table}, row 2: it has no id",
        f"{table}, row 3 (id bad): price=about 5 is not a number like 14.40",
        f"{table}, row 4 (id keep): its id is in row 1 too",
        f"{table}, row 5: it has 4 columns instead of 3",
        "error: 4 of 9 rows could not be used: their entries in the catalogue, if any, are unchanged.",
    ]
    assert "4 products added, 1 changed, 0 removed" in out
    assert {product_id: row["price"] for product_id, row in rows.items()} == {
        **{"keep": 3, "bad": 2, "new": 9},
        **{"good": 10, "last": 11, "other": 12},
    }


@pytest.mark.parametrize(
    ("texts", "prices"),
    [
        (["19,90", "1.299,00", "1.299", "5"], [19.9, 1299, 1299, 5]),
        (["19.90", "1,299.00", "1,299", "1e3"], [19.9, 1299, 1299, 1000]),
        (["1.299", "5"], [1.299, 5]),
        (["€ 19,90", "19,90 EUR", "CHF 1\u2019299,00", "1 299,5", "-3,5 $"], [19.9, 19.9, 1299, 1299.5, -3.5]),
        (["1,299", "5"], [None, 5]),
        (["1,50", "1.50", "1.299,50", "1.299"], [1.5, 1.5, 1299.5, None]),
        (["1.2.3", "12.34.56,7", "5,0", "6,0", "7,0"], [None, None, 5, 6, 7]),
        (["nan", "5", "1e3", "inf", "-7.5"], [None, 5, 1000, None, -7.5]),
    ],
)
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_prices_may_have_decimal_commas_thousands_and_currencies(shop, tmp_path, texts, prices, form):
    table = tmp_path / f"shop.{form}"
    columns = pa.table(
        {"id": [f"{row}" for row in range(len(texts))], "price": texts, "image": ["loose.png"] * len(texts)}
    )
    write = {"csv": pyarrow.csv.write_csv, "parquet": pyarrow.parquet.write_table}[form]
    write(columns, table)
    products = products_from_files(str(shop), str(table), lambda *_: None)
    found = dict(zip(products.ids, products.table["price"].to_pylist(), strict=True))
    assert [found.get(f"{row}") for row in range(len(texts))] == prices
    assert [row.id for row in products.omitted] == [f"{row}" for row, price in enumerate(prices) if price is None]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_table_may_be_the_export_of_a_spreadsheet_with_another_delimiter(shop, tmp_path, delimiter):
    rows = [["id", "price", "width", "image"], ["1", "19,90", "2,5", "loose.png"], ["2", "", "3", "loose.png"]]
    table = tmp_path / "shop.csv"
    table.write_text("\ufeff" + "\n".join(delimiter.join(row) for row in rows) + "\n")
    products = products_from_files(str(shop), str(table), lambda *_: None)
    assert products.table.select(["id", "price", "width"]).to_pydict() == {
        **{"id": ["1", "2"], "price": [19.9, None], "width": [2.5, 3.0]}
    }


def test_an_unreadable_parquet_file_is_reported_with_its_reason(run_index, tmp_path):
    (tmp_path / "shop.parquet").write_bytes(b"PAR1\xe9\xff no more")
    status, _, err, _ = run_index(f"products={tmp_path / 'shop.parquet'}")
    assert (status, err.count("\n")) == (1, 1)
    assert "shop.parquet cannot be read (Parquet magic bytes not found in footer" in err


def read_table(path):
    Image.new("L", (4, 4)).save(path.parent / "a.png")
    return products_from_files(None, str(path), lambda *_: None).table


def test_the_types_of_columns_are_those_of_all_rows_and_the_file_is_read_twice_at_most(tmp_path, monkeypatch):
    reads = []
    read = pyarrow.csv.read_csv
    monkeypatch.setattr(pyarrow.csv, "read_csv", lambda *a, **options: reads.append(1) or read(*a, **options))
    columns = [f"c{number}" for number in range(50)]
    lines = [",".join(["id", "image", *columns])]
    # More than Arrow's first block of a megabyte.
    lines += [",".join([str(row), "a.png", *["1" * 20] * 25, *["1.5" * 1] * 25]) for row in range(2000)]
    lines.append(",".join(["last", "a.png", *["sock"] * 50]))
    (tmp_path / "shop.csv").write_text("\n".join(lines))
    table = read_table(tmp_path / "shop.csv")
    assert {str(table.schema.field(name).type) for name in columns} == {"string"}
    assert len(reads) <= 2


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_columns_of_a_table_are_limited(tmp_path, suffix):
    names = ["id", "image", *map(str, range(1000))]
    path = tmp_path / f"shop.{suffix}"
    if suffix == "csv":
        path.write_text(f"{','.join(names)}\n1,a.png{',' * 1000}\n")
    else:
        pyarrow.parquet.write_table(pa.table({name: ["1"] for name in names}), path)
    with pytest.raises(UserError, match=r"has 1,002 columns: 1,000 are the most"):
        read_table(path)


@pytest.mark.parametrize("column", ["title", "note"])
def test_a_text_too_long_for_tables_and_pages_is_reported(tmp_path, column):
    path = tmp_path / "shop.csv"
    path.write_text(f"id,image,{column}\n1,a.png,{'x' * 100_000}\n2,a.png,\n")
    assert read_table(path)[column].to_pylist()[0] == "x" * 100_000
    path.write_text(f"id,image,{column}\n1,a.png,y\n2,a.png,{'é' * 50_001}\n")
    with pytest.raises(UserError, match=rf"shop\.csv, column {column}, row 2: a text of 100,002 bytes is too long"):
        read_table(path)


def test_a_text_that_is_too_long_is_reported_with_the_number_of_its_row_in_the_file(tmp_path):
    (tmp_path / "shop.csv").write_text(f"id,image,title\n1,a.png\n2,a.png,{'x' * 100_001}\n3,a.png,\n4,a.png,\n")
    with pytest.raises(UserError, match=r"shop\.csv, column title, row 2: a text of 100,001 bytes is too long"):
        read_table(tmp_path / "shop.csv")


def test_a_price_in_parquet_that_is_not_a_number_is_no_price(tmp_path):
    columns = {"id": ["1", "2"], "image": ["a.png"] * 2, "price": [float("nan"), 5.0]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "shop.parquet")
    assert read_table(tmp_path / "shop.parquet")["price"].to_pylist() == [None, 5]


def test_values_that_python_cannot_hold_are_reported(tmp_path):
    path = tmp_path / "shop.parquet"
    columns = {"id": ["1"], "image": ["a.png"], "age": pa.array([2**62], pa.duration("s"))}
    pyarrow.parquet.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=r"shop\.parquet holds a value that is out of range"):
        read_table(path)
    path = tmp_path / "shop.csv"
    heading = "c" * 200_000
    path.write_text(f"id,image,{heading}\n" + "".join(f"{row},a.png,1\n" for row in range(100_000)) + "z,a.png,x\n")
    with pytest.raises(UserError, match=r"shop\.csv cannot be read \(field larger than field limit"):
        read_table(path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b.png"])
def test_the_name_of_no_possible_picture_is_reported(run_index, shop, tmp_path, name):
    table = tmp_path / "shop.csv"
    picture = next(shop.rglob("*.png")).relative_to(shop)
    table.write_text(f"id,image\n1,{picture}\n2,{name}\n")
    status, _, err, rows = run_index(f"images={shop}", f"products={table}")
    assert "Traceback" not in err
    assert status == 3
    assert len(err) < 1000
    assert [*rows] == ["1"]


def test_a_compressed_csv_is_not_unpacked(tmp_path):
    (tmp_path / "shop.csv.gz").write_bytes(gzip.compress(b"id,image\n1,a.png\n"))
    with pytest.raises(UserError, match=r"shop\.csv\.gz is compressed: unpack it"):
        read_table(tmp_path / "shop.csv.gz")
    (tmp_path / "plain.csv.gz").write_text("id,image\n1,a.png\n")
    assert read_table(tmp_path / "plain.csv.gz")["id"].to_pylist() == ["1"]


def test_the_bytes_and_rows_of_a_table_are_limited(tmp_path, monkeypatch):
    count = 200
    csv_file, encoded, plain = (tmp_path / name for name in ("shop.csv", "encoded.parquet", "plain.parquet"))
    csv_file.write_text("id,image\n" + "".join(f"{number},a.png\n" for number in range(count)))
    columns = {"id": [str(number) for number in range(count)], "image": ["a.png"] * count}
    # One text of which each row takes a few bits.
    note = pa.DictionaryArray.from_arrays(pa.array([0] * count), pa.array(["x" * 10_000]))
    pyarrow.parquet.write_table(pa.table(columns | {"note": note}), encoded)
    pyarrow.parquet.write_table(pa.table(columns | {"note": note.dictionary_decode()}), plain)
    assert read_table(encoded) == read_table(plain)
    assert read_table(plain)["note"].to_pylist() == ["x" * 10_000] * count
    monkeypatch.setattr("fashion_cnn.retrieval.tables._MAX_BYTES", 1_000_000)
    for file in (encoded, plain):
        assert file.stat().st_size < 100_000
        with pytest.raises(UserError, match="holds more than 1 MB: shorten its columns"):
            read_table(file)
    monkeypatch.setattr("fashion_cnn.retrieval.tables._MAX_BYTES", 1000)
    with pytest.raises(UserError, match=r"shop\.csv holds more than 0.001 MB"):
        read_table(csv_file)
    monkeypatch.setattr("fashion_cnn.retrieval.tables._MAX_ROWS", count - 1)
    with pytest.raises(UserError, match=r"plain\.parquet has 200 rows: 199 are the most"):
        read_table(plain)


def test_pandas_row_numbers_and_empty_columns_are_dropped(run_index, shop, tmp_path):
    (tmp_path / "shop.csv").write_text(",id,title,,\n0,loose,A title,,\n7,bags/bag,A bag,,\n")
    status, _, err, rows = run_index(f"images={shop}", f"products={tmp_path / 'shop.csv'}")
    assert status == 3
    assert "bags/bag cannot be read" in err
    assert (rows["loose"]["title"], "" in rows["loose"]) == ("A title", False)


def test_column_types_of_pandas_and_polars_become_plain_types(run_index, shop, tmp_path):
    columns = {
        "id": pa.array(["loose"], pa.large_string()),
        "colour": pa.array(["red"]).dictionary_encode(),
        "size": pa.array([4]).dictionary_encode(),
        "brand": pa.array(["a brand"], pa.large_string()),
        "material": pa.nulls(1),
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "shop.parquet")
    assert run_index(f"images={shop}", f"products={tmp_path / 'shop.parquet'}")[0] == 0
    schema = Catalogue(str(tmp_path / "catalogue")).open().schema
    assert [schema.field(name).type for name in columns] == [*[pa.string()] * 2, pa.int64(), *[pa.string()] * 2]
    (tmp_path / "shop.csv").write_text("id,colour,material\nloose,red,wool\n")
    status, _, _, rows = run_index(f"images={shop}", f"products={tmp_path / 'shop.csv'}")
    assert (status, rows["loose"]["material"]) == (0, "wool")


def test_a_catalogue_may_be_a_url(command, run, shop, tmp_path):
    arguments = (f"run={run.path}", f"catalogue=file://{tmp_path / 'elsewhere'}", f"images={shop / 'bags' / 'bag.png'}")
    assert "1 product added" in command(main, *arguments)[1]
    assert "1 unchanged" in command(main, *arguments)[1]
    assert len(Snapshot(Catalogue(f"file://{tmp_path / 'elsewhere'}"))) == 1


def test_a_catalogue_finds_its_run_from_any_working_directory(command, run, shop, tmp_path, monkeypatch):
    monkeypatch.chdir(run.path.parent)
    assert command(main, f"run={run.path.name}", f"catalogue={tmp_path}/c", f"images={shop / 'loose.png'}")[0] == 0
    monkeypatch.chdir(tmp_path)
    trusted = f"runs_dir={run.path.parent}"
    assert command(search_main, "catalogue=c", trusted, "text=loose")[::2] == (0, "")


def test_a_single_picture_becomes_a_product_named_like_the_file(run_index, shop):
    _, _, _, rows = run_index(f"images={shop / 'bags' / 'bag.png'}")
    assert [(row["id"], row["title"]) for row in rows.values()] == [("bag.png", "bag")]


def test_the_picture_is_chosen_among_files_with_the_name_of_the_id(run_index, shop, tmp_path):
    for suffix in ("csv", "txt"):
        (shop / f"loose.{suffix}").write_text("What we say of it.")
    (tmp_path / "shop.csv").write_text("id\nloose\n")
    assert run_index(f"images={shop}", f"products={tmp_path / 'shop.csv'}")[0] == 0


@pytest.mark.parametrize(
    ("main", "arguments", "status", "message"),
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
        *(
            (command, ["run=[a,b]", *options], 2, "run=['a', 'b'] is not one run")
            for command, options in SINGLE_RUN_COMMANDS
        ),
    ],
)
def test_invalid_options_are_reported_in_one_message(command, run, tmp_path, main, arguments, status, message):
    (tmp_path / "odd").mkdir()
    with (tmp_path / "odd" / os.fsdecode(b"caf\xe9.png")).open("wb") as file:
        Image.new("L", (28, 28)).save(file, "PNG")
    result, _, err = command(main, f"run={run.path}", *(argument.format(tmp=tmp_path) for argument in arguments))
    assert (result, err.count("\n")) == (status, 1)
    assert message.format(tmp=tmp_path) in err
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture
def worded_table(tmp_path):
    path = tmp_path / "worded.csv"
    rows = ["id,title,image,brand,size,made", "1,Blue shirt,shirts/blue_shirt-1.png,Acme,42,2024-01-01"]
    rows += ["2,Red shirt,shirts/red shirt.png,Other,40,2024-01-02", "3,Acme bag,bags/bag.png,,,2024-01-03"]
    path.write_text("\n".join(rows))
    return path


def test_words_are_searched_in_the_chosen_columns(run_index, run, shop, tmp_path, worded_table):
    options = [f"images={shop}", f"products={worded_table}", "text_columns=[title,brand,size,category]"]
    status, _, err, rows = run_index(*options)
    assert (status, err, len(rows)) == (0, "", 3)
    catalogue = Catalogue(str(tmp_path / "catalogue"))

    def found(text):
        snapshot = Snapshot(catalogue)
        matches = snapshot.match_text(text)
        ids = [snapshot.attributes["id"][row].as_py() for row in matches.rows.tolist()]
        return ids[: matches.has_all_words.sum()], set(ids)

    assert found("acme shirt") == (["1"], {"1", "2", "3"}), "the words stand in different columns"
    assert found("42 blue")[0] == ["1"]
    assert "3" in found(rows["3"]["seen_as"].split()[0])[1], "an empty category is the predicted one"
    assert "searchable_text" not in Snapshot(catalogue).attributes.column_names
    put_product(catalogue, TrainedNetwork(run, flip_average=True), "1", {"brand": "Green Hill"})
    assert found("green shirt")[0] == ["1"]
    assert found("acme")[1] == {"3"}
    status, _, err, _ = run_index(f"images={shop}", f"products={worded_table}")
    assert status == 1
    assert "was indexed with 'text_columns=[title,brand,size,category]': use the same value" in err
    assert run_index(*options, "rebuild=true")[0] == 0
    assert found("acme shirt")[0] == ["1"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("[]", "text_columns names no column"),
        ("[title,brnd]", "the products have no column brnd"),
        ("[made]", "column made holds"),
    ],
)
def test_columns_that_cannot_be_searched_for_words_are_reported(run_index, shop, worded_table, columns, message):
    arguments = [f"images={shop}", f"products={worded_table}", f"text_columns={columns}"]
    status, _, err, rows = run_index(*arguments)
    assert (status, err.count("\n"), rows) == (2, 1, {})
    assert message in err


def test_a_column_that_changes_its_type_is_rejected(run_index, shop, tmp_path):
    table = write_csv(tmp_path / "shop.csv", "1,Shirt,,,loose.png,blue,3")
    assert run_index(f"images={shop}", f"products={table}")[0] == 0
    write_csv(tmp_path / "shop.csv", "1,Shirt,,,loose.png,blue,many")
    status, _, err, rows = run_index(f"images={shop}", f"products={table}")
    assert status == 1
    assert "Column stock now holds text, but integers in" in err
    write_csv(tmp_path / "shop.csv", "1,Shirt,,,loose.png,blue,3.5")
    status, _, err, rows = run_index(f"images={shop}", f"products={table}")
    assert status == 1
    assert "Column stock now holds decimal numbers, but integers in" in err
    assert rows["1"]["stock"] == 3


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.slow
def test_columns_keep_their_types_when_new_values_are_less_specific(run_index, shop, tmp_path, form):
    """Empty columns, and integers in a column of decimal numbers."""
    file = tmp_path / f"shop.{form}"

    def index_columns(**columns):
        table = pa.table({"id": ["loose"], **columns})
        (pyarrow.csv.write_csv if form == "csv" else pyarrow.parquet.write_table)(table, file)
        status, out, err, rows = run_index(f"images={shop}", f"products={file}")
        assert (status, err) == (0, "")
        return out, [rows["loose"][name] for name in columns]

    assert index_columns(stock=[3], weight=[0.5], sold=[True])[1] == [3, 0.5, True]
    file.unlink()
    nothing = pa.nulls(1)
    assert index_columns(stock=nothing, weight=[2], sold=[True], new=["x"])[1] == [None, 2.0, True, "x"]
    assert index_columns(stock=[4], weight=nothing, sold=[False], new=["x"])[1] == [4, None, False, "x"]
    out, _ = index_columns(stock=[4], weight=nothing, sold=[False], new=["x"])
    assert "1 unchanged" in out


def test_a_text_column_stays_text_when_all_values_are_numbers(run_index, shop, tmp_path):
    table = tmp_path / "shop.csv"
    for size in ("XL", "007"):
        table.write_text(f"id,size\nloose,{size}\n")
        status, _, err, rows = run_index(f"images={shop}", f"products={table}")
        assert (status, err, rows["loose"]["size"]) == (0, "", size)


@pytest.mark.slow
def test_a_catalogue_of_another_network_is_rejected_unless_rebuilt(run_index, command, shop, tmp_path):
    (shop / "bags" / "broken.jpg").unlink()
    run_index(f"images={shop}")
    other = train_run(tmp_path / "other", "seed=1")
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
    assert len(before.thumbnails([0, 4])) == 2, "an open snapshot stays readable"
    assert set(catalogue.content_keys()) == {"bag.png", "sack.png"}
    assert Snapshot(catalogue).metadata.network == TrainedNetwork(other, flip_average=True).identity


@pytest.mark.parametrize(
    ("option", "value"), [("flip_average", "false"), ("invert", "always"), ("class_weight", "0.5")]
)
def test_a_catalogue_indexed_with_other_options_is_rejected(run_index, shop, option, value):
    run_index(f"images={shop / 'bags'}", f"{option}={value}")
    status, _, err, rows = run_index(f"images={shop / 'shirts'}")
    assert status == 1
    assert f"was indexed with {option}={value}: use the same value, or rebuild=true" in err
    assert rows.keys() == {"bag.png", "sack.png"}


@pytest.mark.parametrize("main", [main, teach_main, predict_main])
def test_an_invalid_invert_option_is_rejected_by_every_command(command, main):
    status, _, err = command(main, "images=nowhere", *(["name=x"] if main is teach_main else []), "invert=sometimes")
    assert status == 2
    assert "invert=sometimes is not possible: choose auto, never, always." in err


@pytest.mark.parametrize("value", ["1.5", "-0.1"])
def test_a_class_weight_outside_0_to_1_is_rejected(command, value):
    status, _, err = command(main, f"class_weight={value}")
    assert status == 2
    assert "is not possible: give a number from 0 to 1." in err


def test_the_training_images_of_the_run_become_products_by_default(run, tmp_path, monkeypatch, command):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests"))
    status, out, err = command(main, f"run={run.path}", f"catalogue={tmp_path / 'own'}")
    assert (status, err) == (0, "")
    assert "160 products added" in out
    rows = Catalogue(str(tmp_path / "own")).open().to_arrow().sort_by("id").to_pylist()
    assert [row["category"] for row in rows[:4]] == ["top", "middle", "low", "bottom"]
    assert rows[0]["thumbnail"].startswith(b"\x89PNG")


@pytest.mark.slow
def test_data_set_images_and_shop_products_do_not_mix_in_a_catalogue(run_index, shop, tmp_path):
    (shop / "bags" / "broken.jpg").unlink()
    assert run_index()[0] == 0
    status, _, err, rows = run_index(f"images={shop}")
    assert (status, len(rows)) == (1, 160)
    assert "holds images of a data set with made-up prices, the new products are products of a shop" in err
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    (shop / "bags" / "broken.jpg").write_bytes(b"no picture")
    status, _, err, rows = run_index(f"images={shop}", "rebuild=true")
    assert (status, len(rows)) == (3, 5)
    assert "1 of 6 products could not be read: they are missing in the rebuilt catalogue." in err
    assert Snapshot(catalogue).metadata.note == ""
    assert "holds products of a shop, the new products are images of a data set" in run_index()[2]


@pytest.mark.parametrize("name", ["staging", "products"])
@pytest.mark.parametrize("rebuild", ["false", "true"])
def test_tables_of_other_programs_are_not_changed(command, run, shop, tmp_path, name, rebuild):
    foreign = lancedb.connect(tmp_path / "theirs").create_table(name, pa.table({"id": ["a"], "key": ["b"]}))
    arguments = (f"run={run.path}", f"catalogue={tmp_path / 'theirs'}")
    status, _, err = command(main, *arguments, f"images={shop}", f"rebuild={rebuild}")
    assert status == 1
    assert f"The table {name} in {tmp_path / 'theirs'} was not made by fashion_cnn.index" in err
    assert command(main, *arguments, "remove=a")[0] == 1
    assert lancedb.connect(tmp_path / "theirs").open_table(name).to_arrow() == foreign.to_arrow()


@pytest.mark.parametrize("tagged", [False, True], ids=["latest version", "version of readers"])
def test_a_catalogue_whose_schema_names_functions_to_call_is_refused(run_index, shop, tmp_path, monkeypatch, tagged):
    run_index(f"images={shop}")
    database = lancedb.connect(tmp_path / "catalogue")
    content = database.open_table("products").to_arrow()
    functions = [{"name": "huggingface", "model": {}, "source_column": "title", "vector_column": "vector"}]
    metadata = content.schema.metadata | {b"embedding_functions": json.dumps(functions).encode()}
    table = database.create_table("products", content.replace_schema_metadata(metadata), mode="overwrite")
    table.tags.update("ready", table.version)
    if tagged:
        database.create_table("products", content, mode="overwrite")
    monkeypatch.setattr(EmbeddingFunctionRegistry, "parse_functions", lambda *_: pytest.fail("functions are built"))
    with pytest.raises(UserError, match=r"not made by fashion_cnn\.index"):
        Catalogue(str(tmp_path / "catalogue")).open()
    if not tagged:
        for rebuild in ("rebuild=false", "rebuild=true"):
            with pytest.raises(UserError, match=r"not made by fashion_cnn\.index"):
                run_index(f"images={shop}", "class_weight=0", rebuild)


def test_no_catalogue_is_created_when_no_picture_can_be_read(run_index, shop, tmp_path):
    for file in (shop / "bags").glob("*.png"):
        file.unlink()
    status, _, err, _ = run_index(f"images={shop / 'bags'}")
    assert (status, err.count("\n")) == (1, 1)
    assert "None of 1 pictures could be read, such as broken.jpg:" in err
    assert not Catalogue(str(tmp_path / "catalogue")).exists()


def test_searching_an_empty_catalogue_returns_no_hits(run_index, run, shop, tmp_path):
    assert run_index(f"images={shop / 'loose.png'}")[0] == 0
    assert "1 product removed" in run_index("remove=loose.png")[1]
    snapshot = Snapshot(Catalogue(str(tmp_path / "catalogue")))
    searcher = Searcher(snapshot, TrainedNetwork(run, flip_average=True))
    picture = torch.zeros(searcher.network.preparation.image_shape, dtype=torch.uint8)
    for query in (Query(text="shirt"), Query(pictures=(picture,)), Query(text="shirt", pictures=(picture,)), Query()):
        assert searcher.search(query) == SearchHits((), 0, with_all_words=0 if query.text else None)
    assert project(snapshot).sampled == 0
    CatalogueView(searcher, Predictor(searcher.network))


def test_a_concurrent_indexing_is_rejected_before_it_starts(run, shop, tmp_path):
    network, catalogue = TrainedNetwork(run), Catalogue(str(tmp_path / "catalogue"))
    products = products_from_files(str(shop), None, lambda *_: None)
    rejected = []

    def index_concurrently(done, total):
        with pytest.raises(UserError, match=r"Another process is indexing into .*: try again") as error:
            index_products(products, Catalogue(catalogue.uri), network)
        rejected.append(error)

    assert index_products(products, catalogue, network, progress=index_concurrently).added == 5
    assert rejected


class Killed(BaseException):
    pass


def test_an_interrupted_indexing_leaves_the_catalogue_unchanged_and_resumes(run, shop, tmp_path, monkeypatch):
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
    embedded = []
    outputs = network.outputs
    monkeypatch.setattr(network, "outputs", lambda images: embedded.append(len(images)) or outputs(images))
    # Another spelling of the run's path names the same run.
    network.run = Run(run.path.parent / "." / ".." / run.path.parent.name / run.path.name)
    assert network.run.path != run.path
    done = index_products(products, catalogue, network)
    assert sum(embedded) == 1, "four of the five were staged before"
    assert (done.added, done.missing) == (5, ("bag.png", "sack.png"))


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("tagged", [True, False], ids=["", "without a tag"])
def test_readers_see_an_indexing_only_when_it_is_complete(run, shop, tmp_path, monkeypatch, rebuild, tagged):
    network, catalogue = TrainedNetwork(run), Catalogue(str(tmp_path / "catalogue"))
    index_products(products_from_files(str(shop / "shirts"), None, lambda *_: None), catalogue, network)
    if not tagged:
        # Catalogues of older versions have neither an id nor a tag.
        monkeypatch.setattr("fashion_cnn.retrieval.catalogue._TABLE_ID_KEY", b"fashion_cnn_none")
        catalogue.open_latest().tags.delete("ready")
    before = catalogue.table_version()
    bags = products_from_files(str(shop / "bags"), None, lambda *_: None)

    def stop(*_):
        raise Killed

    with monkeypatch.context() as patch:
        # The last step, after all products are in the table.
        patch.setattr("fashion_cnn.retrieval.indexing.update_vector_index", stop)
        with pytest.raises(Killed):
            index_products(bags, catalogue, network, prune=True, rebuild=rebuild)
    assert set(catalogue.content_keys()) == {"bag.png", "sack.png"}
    snapshot = Snapshot(Catalogue(catalogue.uri))
    assert snapshot.table_version == catalogue.table_version() == before
    assert len(snapshot.match_text("shirt").rows) == len(snapshot) == len(snapshot.thumbnails([0, 1])) == 2
    done = index_products(bags, catalogue, network, prune=True)
    after = Snapshot(catalogue)
    assert (set(after.row_by_id), after.version) == ({"bag.png", "sack.png"}, done.version)
    assert after.version == catalogue.open_latest().version, "readers see the latest version"
    assert len(after.match_text("sack").rows) == 1


def test_a_failed_change_is_not_published_by_the_next(run, shop, tmp_path):
    network, catalogue = TrainedNetwork(run), Catalogue(str(tmp_path / "catalogue"))
    index_products(products_from_files(str(shop / "shirts"), None, lambda *_: None), catalogue, network)
    before = catalogue.open().to_arrow().sort_by("id")

    def change(row):
        product = before.slice(row, 1)
        catalogue.put(product.set_column(product.column_names.index("title"), "title", [["changed"]]))

    def fail():
        with catalogue.transaction():
            change(0)
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            fail()
        assert catalogue.open().to_arrow().sort_by("id") == before
    with catalogue.transaction():
        change(1)
    titles = catalogue.open().to_arrow().sort_by("id")["title"].to_pylist()
    assert titles == [before["title"][0].as_py(), "changed"]
    assert catalogue.table_version().version == catalogue.open_latest().version
    with catalogue.transaction():
        pass
    assert catalogue.table_version().version == catalogue.open_latest().version, "nothing to discard"


def test_versions_older_than_the_lifetime_are_cleaned_up(run, shop, tmp_path, monkeypatch):
    network, catalogue = TrainedNetwork(run), Catalogue(str(tmp_path / "catalogue"))
    index_products(products_from_files(str(shop / "shirts"), None, lambda *_: None), catalogue, network)
    first = catalogue.table_version().version
    monkeypatch.setattr("fashion_cnn.retrieval.catalogue._VERSION_LIFETIME", timedelta(milliseconds=1))
    index_products(products_from_files(str(shop / "bags"), None, lambda *_: None), catalogue, network, prune=True)
    assert set(Snapshot(catalogue).row_by_id) == {"bag.png", "sack.png"}
    assert first not in [version["version"] for version in catalogue.open_latest().list_versions()], "cleaned up"


def test_an_interruption_reports_whether_the_catalogue_changed(run_index, shop, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fashion_cnn.retrieval.indexing.update_vector_index", stop)
        status, _, err, rows = run_index(f"images={shop / 'shirts'}")
        assert (status, len(rows)) == (130, 0)
        assert "Stopped. The catalogue is unchanged: run the command again to resume." in err
    assert run_index(f"images={shop / 'shirts'}")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("fashion_cnn.retrieval.indexing.update_vector_index", stop)
        _, _, err, rows = run_index(f"images={shop / 'loose.png'}")
        assert "Stopped. The catalogue is unchanged: run the command again to resume." in err
        assert "loose.png" not in rows


# Its processes are copies of one that has imported this module.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["test_index"])


def index_one_more_each_time(run, folder, uri, confirmed):
    """Index 2 to 31 pictures; send the number of indexings that are done."""
    network, catalogue = TrainedNetwork(run), Catalogue(uri)
    confirmed.send(0)
    for count in range(1, 31):
        files = [str(file) for file in sorted(folder.iterdir())[: count + 1]]
        Image.new("L", (20, 20), 8 * count).save(files[0])
        index_products(products_from_files(files, None, lambda *_: None), catalogue, network)
        confirmed.send(count)


@pytest.mark.slow
@pytest.mark.parametrize(("after", "delay"), [(0, 0.1), (1, 0.0), (1, 0.3), (1, 1.1)])
def test_killing_an_indexing_leaves_a_consistent_catalogue(run, tmp_path, after, delay):
    """Kill a process that adds one product and changes another in each indexing; confirmed ones have to be stored."""
    folder, uri = tmp_path / "pictures", tmp_path / "catalogue"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(31):
        Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(folder / f"{number:02}.png")
    receiver, sender = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=index_one_more_each_time, args=(run, folder, str(uri), sender))
    process.start()
    sender.close()
    while (confirmed := receiver.recv()) != after:
        pass
    time.sleep(delay)
    process.kill()
    process.join(PATIENCE)
    with suppress(EOFError):
        while True:
            confirmed = receiver.recv()
    network, catalogue = TrainedNetwork(run), Catalogue(str(uri))
    count = 0
    if confirmed or catalogue.exists():
        snapshot = Snapshot(catalogue)
        count = len(snapshot)
        assert confirmed <= count - 1 <= confirmed + 1
        (changed,) = (row for product_id, row in snapshot.row_by_id.items() if product_id.endswith("00.png"))
        brightness = np.asarray(Image.open(io.BytesIO(snapshot.thumbnails(range(count))[changed]))).mean() / 8
        assert round(brightness) == count - 1, "both in one transaction"
    index_products(products_from_files(str(folder), None, lambda *_: None), catalogue, network)
    # The kill may have left the first picture half written.
    assert (
        {f"{number:02}.png" for number in range(1, 31)}
        <= Snapshot(catalogue).row_by_id.keys()
        == set(catalogue.content_keys())
    )


def test_a_lock_that_is_a_link_to_itself_is_reported_in_one_message(run_index, shop, tmp_path):
    lock = tmp_path / "catalogue" / ".lock"
    lock.parent.mkdir()
    lock.symlink_to(lock)
    status, out, err, rows = run_index(f"images={shop / 'shirts'}")
    assert (status, out, rows) == (1, "", {})
    assert err.splitlines()[-1] == f"error: {lock} is not a regular file: delete it, and run the command again."
    lock.unlink()
    assert run_index(f"images={shop / 'shirts'}")[0] == 0


def bare_folder(folder):
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "1.lance").write_bytes(b"part of a file")


def damaged_manifest(folder):
    bare_folder(folder)
    (folder / "_versions").mkdir()
    (folder / "_versions" / f"{2**64 - 2}.manifest").write_bytes(b"part of a manifest")


@pytest.mark.parametrize("rebuild", ["false", "true"])
@pytest.mark.parametrize(
    ("tables", "leave"),
    [
        (["staging"], bare_folder),
        (["staging"], damaged_manifest),
        (["products"], bare_folder),
        (["staging", "products"], bare_folder),
    ],
)
def test_folders_without_a_readable_table_do_not_block_indexing(run_index, shop, tmp_path, tables, leave, rebuild):
    for name in tables:
        leave(tmp_path / "catalogue" / f"{name}.lance")
    status, out, err, rows = run_index(f"images={shop / 'shirts'}", f"rebuild={rebuild}")
    assert (status, err, len(rows)) == (0, "", 2)
    assert "2 products added" in out
    assert run_index(f"images={shop / 'shirts'}")[0] == 0


def test_a_damaged_staging_table_is_made_again(run, shop, tmp_path):
    (shop / "bags" / "broken.jpg").unlink()
    network, catalogue = TrainedNetwork(run), Catalogue(str(tmp_path / "catalogue"))
    products = products_from_files(str(shop), None, lambda *_: None)

    def stop(done, total):
        raise Killed

    with pytest.raises(Killed):
        index_products(products, catalogue, network, progress=stop)
    for file in (tmp_path / "catalogue" / "staging.lance" / "data").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert index_products(products, catalogue, network).added == 5


def test_unfinished_files_of_a_killed_indexing_are_removed_by_the_next(run_index, shop, tmp_path):
    assert run_index(f"images={shop / 'shirts'}")[0] == 0
    table = tmp_path / "catalogue" / "products.lance"
    # Files that kills at its file operations leave.
    names = ("data/.tmph9N23z", "_versions/.tmpM2TlXX", f"_versions/{2**64 - 6}.manifest#1", "_indices/e1c3/.tmpohy674")
    for name in (*names, "data/.tmp of someone", "notes#1"):
        (table / name).parent.mkdir(exist_ok=True)
        (table / name).write_bytes(b"part of a file")
    status, _, err, rows = run_index(f"images={shop / 'shirts'}")
    assert (status, err, len(rows)) == (0, "", 2)
    assert not [name for name in names if (table / name).exists()]
    assert (table / "data" / ".tmp of someone").exists()
    assert (table / "notes#1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 500, 2000, 5000, 8000, 10_000])
@pytest.mark.parametrize("rebuild", ["false", "true"])
def test_a_full_disk_ends_an_indexing_in_one_message_and_blocks_no_later_one(run_index, shop, tmp_path, size, rebuild):
    (shop / "bags" / "broken.jpg").unlink()
    assert run_index(f"images={shop / 'bags'}")[0] == 0
    with file_size_limit(size):
        status, _, err, rows = run_index(f"images={shop}", f"rebuild={rebuild}")
    assert (status, err.count("\n")) == (1, 1)
    assert f"{tmp_path / 'catalogue'} cannot be used (" in err
    assert "or choose another directory" in err
    assert rows.keys() == {"bag.png", "sack.png"}, "readers see the catalogue of before"
    status, _, err, rows = run_index(f"images={shop}", f"rebuild={rebuild}", "prune=true")
    assert (status, err, len(rows)) == (0, "", 5)


def test_a_first_version_is_opened_only_when_it_is_complete(run, shop, tmp_path, monkeypatch):
    """A server polls the catalogue at each step of its first indexing."""
    network, catalogue = TrainedNetwork(run), Catalogue(str(tmp_path / "catalogue"))
    products = products_from_files(str(shop / "shirts"), None, lambda *_: None)
    seen = []

    def look(*_):
        reader = Catalogue(catalogue.uri)
        seen.append(reader.exists())
        with pytest.raises(UserError, match="is not complete: its first indexing is running, or was interrupted"):
            Snapshot(reader)

    with monkeypatch.context() as patch:
        patch.setattr("fashion_cnn.retrieval.catalogue._optimize", look)
        patch.setattr("fashion_cnn.retrieval.indexing.update_vector_index", look)
        patch.setattr("fashion_cnn.retrieval.catalogue._tag", lambda table: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            index_products(products, catalogue, network)
    assert seen == [False, False]
    look()
    index_products(products, catalogue, network)
    assert catalogue.exists()
    assert len(Snapshot(catalogue).match_text("shirt").rows) == 2


def test_opening_a_missing_catalogue_fails_with_advice(tmp_path):
    with pytest.raises(UserError, match=r"no catalogue at .*fashion_cnn.index makes one"):
        Catalogue(str(tmp_path)).open()


@pytest.mark.parametrize("module", ["approximate", "catalogue", "filters", "snapshot"])
def test_a_new_table_is_not_logged_whatever_is_imported_first(module, tmp_path):
    code = (
        f"import fashion_cnn.retrieval.{module}, lancedb\n"
        f"lancedb.connect({str(tmp_path)!r}).create_table('t', [{{'a': 1}}], mode='overwrite')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "LANCEDB_LOG"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""


def test_missing_lancedb_is_reported_with_the_install_command(command, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    status, _, err = command(main)
    assert status == 1
    assert f"This needs lancedb: {install_command('search')}" in err
