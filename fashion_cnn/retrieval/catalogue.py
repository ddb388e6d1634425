"""The catalogue of a shop's products, on disk: a LanceDB table of vectors, thumbnails and attributes.

What is new is written to a second table, the staging table, batch by batch, and moved into the first at the end, which
takes several of LanceDB's versions. The one that an indexing ends with is tagged, and readers open that one: whoever
searches sees the catalogue of before or of after, and an interrupted indexing goes on with what it has staged.

The schema of the table says whose vectors it holds. Commands name a catalogue by its address or by its run.
"""

import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

# Set before the import of lancedb, which reports each table that it makes.
os.environ.setdefault("LANCEDB_LOG", "error")

import lancedb
import pyarrow as pa
from filelock import FileLock, Timeout
from lancedb.expr import col
from lancedb.index import FTS

from fashion_cnn.errors import UserError
from fashion_cnn.pictures.preparation import Invert
from fashion_cnn.runs import Run, display_path, find_finished_run, list_runs

_ABOUT = b"fashion_cnn"
# Of a table that was made anew: its versions count from the start again.
_MADE = b"fashion_cnn_made"
_TABLE, _STAGING = "products", "staging"
# The tag of the version that readers open.
_READY = "ready"
# Readers may have a version open for so long after the next one.
_KEPT = timedelta(days=1)
_FOR_EVER = timedelta(days=36500)
# What a shop says of every product; its further columns come behind them.
PRODUCT_COLUMNS = ("id", "title", "category", "price")
# What indexing and searching add.
RESERVED_COLUMNS = ("key", "seen_as", "confidence", "thumbnail", "vector", "similarity")


@dataclass(frozen=True)
class CatalogueMetadata:
    """Whose vectors a catalogue holds.

    network: `TrainedNetwork.identity`. run: the directory of that run then. dimensions: of a vector.
    flip_average: whether the mirror images were looked at too. invert: see `Preparation`. note: what people are to know
    of the products, if anything. class_weight: see `search_vectors`.
    """

    network: str
    run: str
    dimensions: int
    flip_average: bool
    invert: Invert
    note: str = ""
    # Catalogues that were made before there was a choice have none.
    class_weight: float = 0.0


class TableVersion(NamedTuple):
    """made: of the making of the table. version: of the table, which counts up with each change."""

    made: str
    version: int


def described(schema: pa.Schema, about: CatalogueMetadata) -> pa.Schema:
    """The schema of a table that says `about` of itself."""
    return schema.with_metadata({_ABOUT: json.dumps(asdict(about)).encode()})


def made_anew(schema: pa.Schema) -> pa.Schema:
    """That of a further making of it."""
    return schema.with_metadata(schema.metadata | {_MADE: secrets.token_hex(8).encode()})


def says_of_itself(schema: pa.Schema) -> bool:
    """Whether a table of this schema is a catalogue's."""
    return _ABOUT in (schema.metadata or {})


def table_version_of(table: Any) -> TableVersion:
    """Of a LanceDB table of products, as it is opened."""
    return TableVersion((table.schema.metadata or {}).get(_MADE, b"").decode(), int(table.version))


def check_compatible(before: CatalogueMetadata, now: CatalogueMetadata, uri: str) -> None:
    """Raises UserError where products of `now` cannot stand beside those of `before` in the catalogue at `uri`."""
    if before.network != now.network:
        raise UserError(
            f"{uri} holds what another network saw ({before.run}): index with that run, name another catalogue=DIR, or "
            "say rebuild=true to replace all of it."
        )
    if before.dimensions != now.dimensions and before.class_weight == now.class_weight:
        raise UserError(f"{uri} was made by another version of fashion_cnn: say rebuild=true to replace it.")
    for option in ("class_weight", "flip_average", "invert"):
        if (made_with := getattr(before, option)) != getattr(now, option):
            raise UserError(
                f"{uri} was made with {option}={str(made_with).lower()}: say the same, or rebuild=true to replace all "
                "of it."
            )
    if before.note != now.note:
        raise UserError(
            f"{uri} holds {_whose(before)}, and these are {_whose(now)}: name another catalogue=DIR for them, or say "
            "rebuild=true to replace all of it."
        )


def _whose(about: CatalogueMetadata) -> str:
    return "the images of a data set, with made-up prices" if about.note else "a shop's own products"


def metadata_of(table: Any) -> CatalogueMetadata:
    """Whose vectors a LanceDB table of products holds."""
    return CatalogueMetadata(**json.loads(table.schema.metadata[_ABOUT]))


class Catalogue:
    """The products at `uri`: a folder, or an object store's address such as s3://bucket/shop.

    Raises UserError where it cannot be opened.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self._names()
        except Exception as error:  # each store has errors of its own
            raise UserError(f"catalogue={uri} cannot be opened: {_first_line(error)}") from error

    @cached_property
    def _database(self) -> lancedb.DBConnection:
        # This makes the folder where there is none.
        return lancedb.connect(self.uri)

    def exists(self) -> bool:
        return _TABLE in self._names()

    def begin(self, about: CatalogueMetadata, columns: Sequence[pa.Field], *, rebuild: bool = False) -> None:
        """Make ready to `stage` products with a shop's own columns; the catalogue itself stays as it is.

        rebuild: what is staged will replace the whole catalogue.
        Raises UserError where the catalogue holds another network's vectors, a column is of another type there, or one
        has a data set's images and the other a shop's products.
        """
        table = self._opened(_TABLE) if self.exists() else None
        if table is not None and not rebuild:
            check_compatible(metadata_of(table), about, self.uri)
            if differing := [field for field in columns if _type_of(table, field.name) not in (None, field.type)]:
                field = differing[0]
                raise UserError(
                    f"Column {field.name} holds {_holding(field.type)} now, and "
                    f"{_holding(_type_of(table, field.name))} in {self.uri}: give it as before, or say rebuild=true."
                )
        schema = _schema(about, columns)
        if _STAGING in self._names():
            staging = self._opened(_STAGING)
            # The same run may be called by another path.
            if staging.schema.equals(schema) and replace(metadata_of(staging), run=about.run) == about:
                return
            self._database.drop_table(_STAGING)
        self._database.create_table(_STAGING, schema=schema)

    def content_keys(self, *, staged: bool = False) -> dict[str, str]:
        """The key of each product's content, by id; of those that are staged, or of the catalogue's own."""
        name = _STAGING if staged else _TABLE
        if name not in self._names():
            return {}
        table = self._opened(name).search().select(["id", "key"]).limit(None).to_arrow()
        return dict(zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True))

    def column_types(self) -> dict[str, pa.DataType]:
        """The types of the shop's own columns, by name; none where there is no catalogue."""
        return (
            {field.name: field.type for field in custom_columns(self._opened(_TABLE).schema)} if self.exists() else {}
        )

    def non_empty_columns(self) -> set[str]:
        """The price and those of the shop's own columns that say something of any product."""
        if not self.exists():
            return set()
        table = self._opened(_TABLE)
        names = ["price", *(field.name for field in custom_columns(table.schema))]
        columns = table.search().select(names).limit(None).to_arrow()
        return {name for name in names if columns[name].null_count < len(columns)}

    def stage(self, products: pa.Table) -> None:
        """Write finished products down, for `commit`."""
        _upsert(self._opened(_STAGING), products)

    def commit(self, ids: Iterable[str], *, rebuild: bool = False) -> None:
        """Move the staged products of these ids into the catalogue, all at once."""
        staging = self._opened(_STAGING)
        wanted = set(ids)
        if rebuild or not self.exists():
            schema = made_anew(staging.schema)
            staged = _batches(staging, wanted, schema)
            table = self._database.create_table(_TABLE, staged, schema=schema, mode="overwrite")
        else:
            table = self._opened(_TABLE)
            if missing := [field for field in staging.schema if _type_of(table, field.name) is None]:
                table.add_columns(missing)
            if wanted:
                _upsert(table, _batches(staging, wanted, table.schema))
            left = set(table.schema.names) - set(staging.schema.names)
            if left and (unsaid := left - self.non_empty_columns()):
                table.drop_columns(sorted(unsaid))
        _tidy(table)
        self._database.drop_table(_STAGING)

    def remove(self, ids: Sequence[str]) -> int:
        """Delete products; the number that were there. Raises UserError where there is no catalogue."""
        table = self.open_latest()
        before = table.count_rows()
        table.delete(col("id").isin(list(ids)))
        removed: int = before - table.count_rows()
        if removed:
            _tidy(table)
        return removed

    def table_version(self) -> TableVersion:
        """The version for readers, told apart from those of a catalogue that stood here before. Raises UserError."""
        return table_version_of(self.open())

    def open(self) -> Any:
        """LanceDB's table for readers, as the last indexing left it, whatever another one is at. Raises UserError where
        there is none.
        """
        table = self.open_latest()
        # Catalogues of before there was a tag have none, nor has one that is being made.
        if _is_tagged(table):
            table.checkout(_READY)
        return table

    def open_latest(self) -> Any:
        """LanceDB's table, to be changed while `indexing`. Raises UserError where there is none."""
        if not self.exists():
            begun = (
                " (an indexing was begun and stopped: the same command goes on)" if _STAGING in self._names() else ""
            )
            raise UserError(f"There is no catalogue at {self.uri}{begun}: python -m fashion_cnn.index makes one.")
        return self._opened(_TABLE)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Change the catalogue: readers see what is done in the block when it ends, and nothing of it after an error.

        Raises UserError where another process of this machine indexes into it, or the folder cannot be written.
        """
        with self._held():
            if self.exists() and not _is_tagged(table := self.open_latest()):
                _tag(table)
            yield
            if self.exists():
                table = self.open_latest()
                _tag(table)
                # No sooner: LanceDB refuses to clean up where it would remove a tagged version.
                table.optimize(cleanup_older_than=_KEPT)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Two processes would take each other's staged products away."""
        if "://" in self.uri:
            yield
            return
        folder = Path(self.uri)
        try:
            lock = FileLock(folder / ".lock").acquire(blocking=False)  # this makes the folder
        except Timeout:
            raise UserError(f"Another process indexes into {self.uri} now: start again when it is done.") from None
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}): name another catalogue=DIR.") from error
        with lock:
            yield

    def _opened(self, name: str) -> Any:
        """A table of this program's. Raises UserError for another one's of the same name."""
        table = self._database.open_table(name)
        if not says_of_itself(table.schema):
            raise UserError(
                f"The table {name} in {self.uri} was not made by python -m fashion_cnn.index: name another "
                "catalogue=DIR, and it stays as it is."
            )
        return table

    def _names(self) -> list[str]:
        if "://" not in self.uri and not Path(self.uri).exists():
            return []
        return list(self._database.list_tables().tables)


def _tidy(table: Any) -> None:
    """Have an index of the titles' words, and large files in place of many small ones."""
    if not has_title_index(table) and table.count_rows():
        table.create_index("title", config=FTS(stem=True, remove_stop_words=True, ascii_folding=True))
    table.optimize(cleanup_older_than=_FOR_EVER)


def _is_tagged(table: Any) -> bool:
    return _READY in table.tags.list()


def _tag(table: Any) -> None:
    """Have readers open this version."""
    put = table.tags.update if _is_tagged(table) else table.tags.create
    put(_READY, table.version)


def has_title_index(table: Any) -> bool:
    """Whether the titles' words can be searched; not before the first product."""
    return any(list(index.columns) == ["title"] for index in table.list_indices())


def custom_columns(schema: pa.Schema) -> list[pa.Field]:
    """The further columns of a shop."""
    return [field for field in schema if field.name not in (*PRODUCT_COLUMNS, *RESERVED_COLUMNS)]


def _type_of(table: Any, column: str) -> pa.DataType | None:
    place = table.schema.get_field_index(column)
    return None if place < 0 else table.schema.field(place).type


def _holding(kind: pa.DataType | None) -> str:
    """In a person's words."""
    if pa.types.is_integer(kind):
        return "whole numbers"
    if pa.types.is_floating(kind):
        return "numbers with fractions"
    return "texts" if pa.types.is_string(kind) else str(kind)


def _schema(about: CatalogueMetadata, columns: Sequence[pa.Field]) -> pa.Schema:
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("title", pa.string()),
        pa.field("category", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("seen_as", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("thumbnail", pa.binary()),
        pa.field("vector", pa.list_(pa.float32(), about.dimensions)),
        *columns,
    ]
    return described(pa.schema(fields), about)


def _upsert(table: Any, products: pa.Table | pa.RecordBatchReader) -> None:
    table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(products)


def _batches(staging: Any, ids: set[str], schema: pa.Schema) -> pa.RecordBatchReader:
    """The staged products of these ids in the columns of `schema`, as they are read."""

    def read() -> Iterator[pa.RecordBatch]:
        for batch in staging.search().limit(None).to_batches(1024):
            chosen = batch.filter(pa.array([one in ids for one in batch["id"].to_pylist()], pa.bool_()))
            there = set(batch.schema.names)
            yield pa.record_batch(
                [chosen[f.name] if f.name in there else pa.nulls(chosen.num_rows, f.type) for f in schema],
                schema=schema,
            )

    return pa.RecordBatchReader.from_batches(schema, read())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def catalogue_uri(named: str | None, run: Run) -> str:
    """The address of the catalogue that a person named, or of the run's own. Raises UserError for an empty one."""
    return str(run.catalogue) if named is None else _address(named)


def _address(named: str) -> str:
    if not named:
        raise UserError(
            "catalogue= names nothing: say catalogue=DIR, a folder or an object store's address, or leave it out.",
            status=2,
        )
    return named if "://" in named else str(Path(named).expanduser())


def find_run_and_catalogue(run: str | None, catalogue: str | None, runs_dir: Path) -> tuple[Run, Catalogue]:
    """The run that searches, and the catalogue that it searches in.

    run: None is the one that made the catalogue, or where none is named the newest one that has a catalogue.
    Raises UserError where there is no such run, or the catalogue's name is empty.
    """
    if catalogue is None:
        found = find_run_with_catalogue(runs_dir) if run is None else find_finished_run(run, runs_dir)
        return found, Catalogue(str(found.catalogue))
    there = Catalogue(_address(catalogue))
    if run is None:
        run = metadata_of(there.open()).run if there.exists() else "latest"
    return find_finished_run(run, runs_dir), there


def as_strings(ids: object | None) -> tuple[str, ...]:
    """One value or several, as texts."""
    if ids is None:
        return ()
    return tuple(map(str, ids)) if isinstance(ids, Iterable) and not isinstance(ids, str) else (str(ids),)


def find_run_with_catalogue(runs_dir: Path) -> Run:
    """The newest finished run with a catalogue of products, or else the newest finished one. Raises UserError."""
    # An indexing that was stopped leaves a folder without the table.
    runs = [run for run in list_runs(runs_dir, "finished") if (run.catalogue / f"{_TABLE}.lance").is_dir()]
    if not runs:
        return find_finished_run("latest", runs_dir)
    print(f"The newest run with a catalogue: {display_path(runs[-1].path)}", file=sys.stderr)
    return runs[-1]
