"""Catalogues whose files are damaged: one message says what is damaged, and `index rebuild=true` replaces them."""

import json
import os
import shutil

import httpx
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tiny_shop import served

from fashion_cnn.index import main as index_main
from fashion_cnn.retrieval.catalogue import Catalogue, _protobuf_fields
from fashion_cnn.retrieval.products import encode_png, thumbnail_size
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.web.state import CatalogueState
from fashion_cnn.search import main as search_main


def cut(pattern, share=0.5):
    """Return a function that cuts each of these files of a table to a share of its length."""

    def damage(table):
        files = [file for file in table.glob(pattern) if file.is_file()]
        assert files, pattern
        for file in files:
            file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])

    return damage


def remove(name):
    """Return a function that deletes a file or folder of a table."""

    def damage(table):
        path = table / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def stored(change):
    """Return a function that stores a changed copy of a table's rows and publishes it."""

    def damage(table):
        database = lancedb.connect(table.parent)
        rows = change(database.open_table(table.stem).to_arrow())
        shutil.rmtree(table)
        changed = database.create_table(table.stem, rows, on_bad_vectors="null")
        changed.tags.create("ready", changed.version)

    return damage


def with_metadata(text):
    return stored(lambda rows: rows.replace_schema_metadata(rows.schema.metadata | {b"fashion_cnn": text.encode()}))


def with_shorter_vectors(rows):
    shorter = [vector[:-1] for vector in rows["vector"].to_pylist()]
    vectors = pa.array(shorter, pa.list_(pa.float32(), len(shorter[0])))
    return rows.set_column(rows.column_names.index("vector"), "vector", vectors)


def with_prices_as_text(rows):
    return rows.set_column(rows.column_names.index("price"), "price", rows["price"].cast(pa.string()))


def with_column(name, make):
    """Return a function that replaces or adds a column of the values that `make` returns for a number of rows."""

    def change(rows):
        values = make(rows.num_rows)
        if name not in rows.column_names:
            return rows.append_column(name, values)
        return rows.set_column(rows.column_names.index(name), rows.schema.field(name), values)

    return stored(change)


def with_changed_metadata(**changes):
    def change(rows):
        metadata = json.loads(rows.schema.metadata[b"fashion_cnn"]) | changes
        return rows.replace_schema_metadata(rows.schema.metadata | {b"fashion_cnn": json.dumps(metadata).encode()})

    return stored(change)


def with_huge_vectors(rows):
    length = rows.schema.field("vector").type.list_size
    vectors = pa.array([[3e38, -3e38] + [0.0] * (length - 2)] * rows.num_rows, pa.list_(pa.float32(), length))
    return rows.set_column(rows.column_names.index("vector"), "vector", vectors)


def with_a_missing_vector(rows):
    vectors = rows["vector"].to_pylist()
    vectors[3] = None
    column = pa.array(vectors, rows.schema.field("vector").type)
    return rows.set_column(rows.column_names.index("vector"), "vector", column)


def as_file(table):
    shutil.rmtree(table)
    table.write_bytes(b"no table")


def empty(table):
    shutil.rmtree(table)
    table.mkdir()


DAMAGES = {
    "data files are empty": cut("data/*", 0),
    "data files are cut": cut("data/*"),
    "data files are missing": remove("data"),
    "manifests are empty": cut("_versions/*", 0),
    "manifests are cut": cut("_versions/*"),
    "manifests are missing": remove("_versions"),
    "the tag is empty": cut("_refs/tags/*", 0),
    "the tag is cut": cut("_refs/tags/*"),
    "the tag is null": lambda table: (table / "_refs" / "tags" / "ready.json").write_text("null"),
    "the tag is missing": remove("_refs"),
    "the index of the titles is missing": remove("_indices"),
    "the index of the titles is empty": cut("_indices/*/*", 0),
    "the metadata are null": with_metadata("null"),
    "the metadata are a list": with_metadata("[]"),
    "the metadata are empty": with_metadata("{}"),
    "the metadata hold no network": with_metadata('{"network": 1, "run": "x", "dimensions": 16, "flip_average": 2}'),
    "the metadata are nested deeply": with_metadata("[" * 100_000),
    "a column is missing": stored(lambda rows: rows.drop_columns(["thumbnail"])),
    "vectors have another length": stored(with_shorter_vectors),
    "prices are text": stored(with_prices_as_text),
    "titles are missing": with_column("title", lambda count: pa.nulls(count, pa.string())),
    "categories are missing": with_column("category", lambda count: pa.nulls(count, pa.string())),
    "times are out of range": with_column("when", lambda count: pa.array([2**62] * count, pa.timestamp("s"))),
    "a time zone is unknown": with_column("when", lambda count: pa.array([5] * count, pa.timestamp("us", "No/Zone"))),
    "durations are out of range": with_column("how_long", lambda count: pa.array([2**62] * count, pa.duration("s"))),
    "dates are out of range": with_column("day", lambda count: pa.array([2**31 - 1] * count, pa.date32())),
    "hours are out of range": with_column("hour", lambda count: pa.array([2**60] * count, pa.time64("us"))),
    "vectors are huge": stored(with_huge_vectors),
    "a vector is missing": stored(with_a_missing_vector),
    "the class weight is negative": with_changed_metadata(class_weight=-1e308),
    "the class weight is huge": with_changed_metadata(class_weight=10**400),
    "the temperature is not a number": with_changed_metadata(temperature=float("nan")),
    "the dimensions are infinite": with_changed_metadata(dimensions=float("inf")),
    "the table is a file": as_file,
    "the table is an empty folder": empty,
}
# Damage that every indexing repairs.
REPAIRED = {"the table is an empty folder", "the table is a file", "manifests are missing", "the tag is missing"}


@pytest.fixture
def damaged(shop_run, tmp_path):
    """Function that damages a copy of the shop's catalogue and returns its folder."""

    def copy(name):
        folder = shutil.copytree(shop_run.catalogue, tmp_path / "catalogue")
        DAMAGES[name](folder / "products.lance")
        return folder

    return copy


@pytest.fixture
def search(command, shop_run):
    return lambda folder: command(
        search_main, f"run={shop_run.path}", f"catalogue={folder}", "text=number", "like=p20", "format=json"
    )


@pytest.fixture
def index(command, shop_run):
    return lambda folder, *options: command(
        index_main,
        f"run={shop_run.path}",
        f"catalogue={folder}",
        f"products={shop_run.path / 'photos' / 'shop.csv'}",
        "class_weight=0",
        *options,
    )


def assert_one_message(result):
    status, out, err = result
    assert (status, err.count("\n")) == (1, 1), out + err
    assert err.startswith("error: ")
    assert "rebuild=true" in err or "python -m fashion_cnn.index" in err or "run it again" in err


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_search_reports_the_damage_and_indexing_repairs_it(search, index, damaged, damage):
    folder = damaged(damage)
    assert_one_message(search(folder))
    result = index(folder)
    assert result[0] == 0 or damage not in REPAIRED
    if result[0]:
        assert_one_message(result)
    status, out, err = index(folder, "rebuild=true")
    assert (status, err) == (0, "")
    assert "60 products added" in out
    status, out, err = search(folder)
    assert (status, err, len(json.loads(out))) == (0, "", 12)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_server_keeps_the_loaded_version_and_logs_the_damage_once(shop_run, tmp_path, capsys, damage):
    folder = shutil.copytree(shop_run.catalogue, tmp_path / "catalogue")
    state = CatalogueState(shop_run, Catalogue(str(folder)), reject=0.01)
    before = state.require_view()
    DAMAGES[damage](folder / "products.lance")
    capsys.readouterr()
    for _ in range(3):
        state.refresh()
    assert state.view is before
    assert capsys.readouterr().err.count("\n") <= 1
    assert len(before.products(["p20"])) == 1


@pytest.mark.parametrize("run", ["\0", "~nosuchuser/x", "/\ud800"])
def test_a_catalogue_that_names_no_path_as_its_run_is_one_message(command, shop_run, tmp_path, run):
    folder = shutil.copytree(shop_run.catalogue, tmp_path / "catalogue")
    with_changed_metadata(run=run)(folder / "products.lance")
    status, out, err = command(search_main, f"catalogue={folder}", "text=number")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "which is not a path" in err
    assert "add run=RUN" in err


@pytest.fixture
def table(shop_run, tmp_path):
    """The folder of the table in a copy of the shop's catalogue."""
    return shutil.copytree(shop_run.catalogue, tmp_path / "catalogue") / "products.lance"


@pytest.mark.parametrize("folder", ["_versions", "tree/branch/_versions"])
def test_a_table_of_files_in_another_place_is_refused_before_they_are_opened(search, index, table, folder):
    original = table.rename(table.with_name("original"))
    # LanceDB's way to make a table of the files of another one, which may be at any address.
    lancedb.connect(table.parent).clone_table("products", str(original), is_shallow=True)
    if folder != "_versions":
        (table / folder).parent.mkdir(parents=True)
        (table / "_versions").rename(table / folder)
    for status, out, err in (search(table.parent), index(table.parent)):
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert f"reads files of another place, {original}" in err


@pytest.mark.parametrize("name", ["_versions/1.manifest", "data/pipe.lance"])
def test_a_pipe_in_a_table_does_not_block(search, index, table, name):
    os.mkfifo(table / name)
    for status, out, err in (search(table.parent), index(table.parent)):
        assert (status, out, err) == (1, "", f"error: {table / name} is not a regular file: delete it.\n")


def test_a_manifest_of_any_size_takes_no_memory(search, table):
    manifest = table / "_versions" / "1.manifest"
    with manifest.open("wb") as file:
        file.truncate(10**12)
    status, out, err = search(table.parent)
    reason = f"{manifest} is damaged (it is larger than 100 MB): take it from a copy of the catalogue."
    assert (status, out, err) == (1, "", f"error: {reason}\n")


def test_a_number_in_a_manifest_ends_after_64_bits():
    class Counted(bytes):
        reads = 0

        def __getitem__(self, place):
            Counted.reads += 1
            return super().__getitem__(place)

    with pytest.raises(IndexError):
        list(_protobuf_fields(Counted(b"\xff" * 1000)))
    assert Counted.reads <= 10, "the time for a longer number grows with the square of its length"


def test_a_link_out_of_a_catalogue_is_not_followed_by_searches(search, table, tmp_path):
    (table / "_versions").rename(tmp_path / "elsewhere")
    (table / "_versions").symlink_to(tmp_path / "elsewhere")
    status, out, err = search(table.parent)
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert "is a link that leads out of" in err


@pytest.mark.parametrize(
    "make",
    [
        lambda count: pa.array(["x"] * count).dictionary_encode(),
        lambda count: pa.array(np.ones(count, np.float16)),
        lambda count: pa.array([[1]] * count),
    ],
    ids=["dictionary", "float16", "list"],
)
def test_a_column_that_cannot_be_compared_is_no_filter(command, shop_run, tmp_path, make):
    folder = shutil.copytree(shop_run.catalogue, tmp_path / "catalogue")
    with_column("odd", make)(folder / "products.lance")
    command_line = (f"run={shop_run.path}", f"catalogue={folder}", "like=p20", "where={odd:1}")
    status, _, err = command(search_main, *command_line)
    assert (status, err.count("\n")) == (1, 1)
    assert "There is no column odd to filter by" in err


def test_missing_thumbnails_are_empty(shop_run, tmp_path):
    folder = shutil.copytree(shop_run.catalogue, tmp_path / "catalogue")
    with_column("thumbnail", lambda count: pa.nulls(count, pa.binary()))(folder / "products.lance")
    snapshot = Snapshot(Catalogue(str(folder)))
    assert snapshot.thumbnails([0, 1]) == [b"", b""]
    snapshot.cache_thumbnails(1000)
    assert snapshot.thumbnails([0, 1]) == [b"", b""]


def test_the_page_of_a_product_without_a_predicted_class_is_shown(shop_run, tmp_path):
    folder = shutil.copytree(shop_run.catalogue, tmp_path / "catalogue")
    with_column("seen_as", lambda count: pa.nulls(count, pa.string()))(folder / "products.lance")
    with_column("confidence", lambda count: pa.nulls(count, pa.float32()))(folder / "products.lance")
    with served(shop_run, f"catalogue='{folder}'") as address:
        response = httpx.get(f"{address}/product", params={"id": "p20"}, timeout=300)
    assert response.status_code == 200
    assert "<dt>Predicted class</dt><dd>not specified</dd>" in response.text


@pytest.mark.parametrize("name", ["title", "note"])
def test_a_text_too_long_for_tables_and_pages_is_damage(search, table, name):
    with_column(name, lambda count: pa.array(["x" * 100_001] + ["y"] * (count - 1)))(table)
    status, out, err = search(table.parent)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"is damaged (its column {name} holds a text of 100,001 bytes)" in err


def test_a_thumbnail_of_many_bytes_is_not_shown():
    content = encode_png(Image.new("L", (4, 4)))
    assert thumbnail_size(content) == (4, 4)
    assert thumbnail_size(content + bytes(4_000_000)) is None
