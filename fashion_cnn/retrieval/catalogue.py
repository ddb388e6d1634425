"""Catalogue of products on disk: a LanceDB table of vectors, thumbnails and attributes.

Indexing writes new products batch by batch to a staging table and moves them into the products table at the end, which
takes several LanceDB versions. The last of them gets a tag, and readers open the tagged version. They see the catalogue
before or after an indexing, never in between, and an interrupted indexing resumes from the staging table.

The schema of the table stores the network and the settings of the vectors. Commands name a catalogue by its address or
by its run.
"""

import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

# Set before the import of lancedb, which logs every new table otherwise.
os.environ.setdefault("LANCEDB_LOG", "error")

import lancedb
import pyarrow as pa
from filelock import FileLock, Timeout
from lancedb.expr import col
from lancedb.index import FTS

from fashion_cnn.errors import UserError
from fashion_cnn.pictures.preparation import Invert
from fashion_cnn.retrieval.products import catalogue_schema, custom_columns, describe_type
from fashion_cnn.runs import Run, display_path, find_finished_run, list_runs

_METADATA_KEY = b"fashion_cnn"
# Random id of a table: the versions of a rebuilt table start again at 1.
_TABLE_ID_KEY = b"fashion_cnn_made"
_TABLE, _STAGING = "products", "staging"
# Tag of the version that readers open.
_READY_TAG = "ready"
# Time for which readers may keep an older version open.
_VERSION_LIFETIME = timedelta(days=1)
_FOREVER = timedelta(days=36500)


@dataclass(frozen=True)
class CatalogueMetadata:
    """Network and settings that made the vectors of a catalogue.

    Attributes:
        network: `TrainedNetwork.identity`.
        run: path of the network's run at the time of the first indexing.
        dimensions: length of a vector.
        flip_average: whether vectors average a picture and its mirror image.
        invert: see `Preparation`.
        note: `Products.note`.
        class_weight: see `search_vectors`; older catalogues store none.
        temperature: divisor of the logits for the column `confidence`; None if it is not calibrated, as in older
            catalogues and without validation images.
    """

    network: str
    run: str
    dimensions: int
    flip_average: bool
    invert: Invert
    note: str = ""
    class_weight: float = 0.0
    temperature: float | None = None


class TableVersion(NamedTuple):
    """Version of a table.

    Attributes:
        table_id: random id of the table, which a rebuild changes.
        version: number that increases with every change.
    """

    table_id: str
    version: int


def metadata_of(table: Any) -> CatalogueMetadata:
    """Read the metadata of a LanceDB table of products."""
    return CatalogueMetadata(**json.loads(table.schema.metadata[_METADATA_KEY]))


def version_of(table: Any) -> TableVersion:
    """Return the checked-out version of a LanceDB table of products."""
    return TableVersion((table.schema.metadata or {}).get(_TABLE_ID_KEY, b"").decode(), int(table.version))


def check_compatible(stored: CatalogueMetadata, new: CatalogueMetadata, uri: str) -> None:
    """Check that new products can be added to the catalogue at `uri`.

    Raises:
        UserError: if their vectors cannot be compared, or if they mix a data set with the products of a shop.
    """
    if stored.network != new.network:
        raise UserError(
            f"{uri} was indexed with another network: use run={stored.run}, another catalogue=DIR, or rebuild=true to "
            "replace it."
        )
    if stored.dimensions != new.dimensions and stored.class_weight == new.class_weight:
        raise UserError(f"{uri} was indexed by another version of fashion_cnn: use rebuild=true to replace it.")
    for option in ("class_weight", "flip_average", "invert"):
        if (value := getattr(stored, option)) != getattr(new, option):
            raise UserError(
                f"{uri} was indexed with {option}={str(value).lower()}: use the same value, or rebuild=true to replace "
                "the catalogue."
            )
    if stored.note != new.note:
        raise UserError(
            f"{uri} holds {_origin(stored)}, the new products are {_origin(new)}: use another catalogue=DIR, or "
            "rebuild=true to replace the catalogue."
        )


def _origin(metadata: CatalogueMetadata) -> str:
    return "images of a data set with made-up prices" if metadata.note else "products of a shop"


class Catalogue:
    """Products at an address.

    Args:
        uri: a folder, or the address of an object store such as s3://bucket/shop.

    Raises:
        UserError: if the address cannot be opened.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self._table_names()
        except Exception as error:  # each store raises its own errors
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"catalogue={uri} cannot be opened: {reason}") from error

    @cached_property
    def _database(self) -> lancedb.DBConnection:
        # Connecting creates a missing folder.
        return lancedb.connect(self.uri)

    # Reading

    def exists(self) -> bool:
        """Return whether a first indexing has stored products."""
        return _TABLE in self._table_names()

    def open(self) -> Any:
        """Open the LanceDB table for readers: the version that the last complete indexing left.

        Raises:
            UserError: if there is no catalogue.
        """
        table = self.open_latest()
        # Older catalogues have no tag, and neither has one during its first indexing.
        if _is_tagged(table):
            table.checkout(_READY_TAG)
        return table

    def open_latest(self) -> Any:
        """Open the latest version of the LanceDB table, to change it inside a `transaction`.

        Raises:
            UserError: if there is no catalogue.
        """
        if not self.exists():
            stopped = " (an indexing was interrupted: run it again)" if _STAGING in self._table_names() else ""
            raise UserError(f"There is no catalogue at {self.uri}{stopped}: python -m fashion_cnn.index makes one.")
        return self._open_table(_TABLE)

    def table_version(self) -> TableVersion:
        """Return the version that readers open. Raises UserError if there is no catalogue."""
        return version_of(self.open())

    def content_keys(self, *, staged: bool = False) -> dict[str, str]:
        """Return the content key of each product by its id, from the products table or the staging table."""
        name = _STAGING if staged else _TABLE
        if name not in self._table_names():
            return {}
        table = self._open_table(name).search().select(["id", "key"]).limit(None).to_arrow()
        return dict(zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True))

    def column_types(self) -> dict[str, pa.DataType]:
        """Return the type of each custom column by its name; empty without a catalogue."""
        fields = custom_columns(self._open_table(_TABLE).schema) if self.exists() else []
        return {field.name: field.type for field in fields}

    def non_empty_columns(self) -> set[str]:
        """Return the names of the price and the custom columns that hold any value."""
        if not self.exists():
            return set()
        names = ["price", *self.column_types()]
        columns = self._open_table(_TABLE).search().select(names).limit(None).to_arrow()
        return {name for name in names if columns[name].null_count < len(columns)}

    # Changing

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Publish the changes of the block to readers when it ends, or none of them after an error.

        Raises:
            UserError: if another process on this machine is changing the catalogue, or the folder is not writable.
        """
        with self._lock():
            if self.exists() and not _is_tagged(table := self.open_latest()):
                _tag(table)
            yield
            if self.exists():
                table = self.open_latest()
                _tag(table)
                # LanceDB refuses to remove a tagged version, so the tag has to move first.
                table.optimize(cleanup_older_than=_VERSION_LIFETIME)

    def begin(self, metadata: CatalogueMetadata, columns: Sequence[pa.Field], *, rebuild: bool = False) -> None:
        """Create the staging table, or keep that of an interrupted indexing. The catalogue itself does not change.

        Args:
            metadata: network and settings of the new vectors.
            columns: custom columns of the new products.
            rebuild: replace the whole catalogue on commit.

        Raises:
            UserError: if the new products do not fit the catalogue (`check_compatible`), or a column changed its type.
        """
        if self.exists() and not rebuild:
            check_compatible(metadata_of(self._open_table(_TABLE)), metadata, self.uri)
            types = self.column_types()
            for field in columns:
                if (stored := types.get(field.name, field.type)) != field.type:
                    raise UserError(
                        f"Column {field.name} now holds {describe_type(field.type)}, but {describe_type(stored)} in "
                        f"{self.uri}: restore its type, or use rebuild=true."
                    )
        stored_metadata = {_METADATA_KEY: json.dumps(asdict(metadata)).encode()}
        schema = catalogue_schema(metadata.dimensions, columns).with_metadata(stored_metadata)
        if _STAGING in self._table_names():
            staging = self._open_table(_STAGING)
            # The path of the run may be spelled in another way.
            if staging.schema.equals(schema) and replace(metadata_of(staging), run=metadata.run) == metadata:
                return
            self._database.drop_table(_STAGING)
        self._database.create_table(_STAGING, schema=schema)

    def stage(self, products: pa.Table) -> None:
        """Write indexed products to the staging table."""
        _upsert(self._open_table(_STAGING), products)

    def commit(self, ids: Iterable[str], *, rebuild: bool = False) -> None:
        """Move the staged products with these ids into the products table."""
        staging = self._open_table(_STAGING)
        selected = set(ids)
        if rebuild or not self.exists():
            table_id = {_TABLE_ID_KEY: secrets.token_hex(8).encode()}
            schema = staging.schema.with_metadata(staging.schema.metadata | table_id)
            batches = _read_batches(staging, selected, schema)
            table = self._database.create_table(_TABLE, batches, schema=schema, mode="overwrite")
        else:
            table = self._open_table(_TABLE)
            if added := [field for field in staging.schema if field.name not in table.schema.names]:
                table.add_columns(added)
            if selected:
                _upsert(table, _read_batches(staging, selected, table.schema))
            absent = set(table.schema.names) - set(staging.schema.names)
            if absent and (empty := absent - self.non_empty_columns()):
                table.drop_columns(sorted(empty))
        _optimize(table)
        self._database.drop_table(_STAGING)

    def remove(self, ids: Sequence[str]) -> int:
        """Delete products and return their number. Raises UserError if there is no catalogue."""
        table = self.open_latest()
        before = table.count_rows()
        table.delete(col("id").isin(list(ids)))
        removed: int = before - table.count_rows()
        if removed:
            _optimize(table)
        return removed

    def _lock(self) -> AbstractContextManager[Any]:
        """Keep a second process from dropping the staging table."""
        if "://" in self.uri:
            return nullcontext()
        try:
            return FileLock(Path(self.uri, ".lock")).acquire(blocking=False)  # creates the folder
        except Timeout:
            raise UserError(f"Another process is indexing into {self.uri}: try again when it is done.") from None
        except OSError as error:
            raise UserError(f"{self.uri} cannot be written ({error.strerror}): use another catalogue=DIR.") from error

    def _open_table(self, name: str) -> Any:
        """Open a table of this program; raise UserError if another program made it."""
        table = self._database.open_table(name)
        if _METADATA_KEY not in (table.schema.metadata or {}):
            raise UserError(
                f"The table {name} in {self.uri} was not made by fashion_cnn.index: use another catalogue=DIR."
            )
        return table

    def _table_names(self) -> list[str]:
        if "://" not in self.uri and not Path(self.uri).exists():
            return []
        return list(self._database.list_tables().tables)


def index_names(table: Any, column: str) -> list[str]:
    """Return the names of LanceDB's indices of a column. Only a table with products can have any."""
    return [index.name for index in table.list_indices() if list(index.columns) == [column]]


def _optimize(table: Any) -> None:
    """Create the full-text index of the titles if it is missing, and merge small files into large ones."""
    if not index_names(table, "title") and table.count_rows():
        table.create_index("title", config=FTS(stem=True, remove_stop_words=True, ascii_folding=True))
    table.optimize(cleanup_older_than=_FOREVER)


def _is_tagged(table: Any) -> bool:
    return _READY_TAG in table.tags.list()


def _tag(table: Any) -> None:
    """Publish the latest version to readers."""
    set_tag = table.tags.update if _is_tagged(table) else table.tags.create
    set_tag(_READY_TAG, table.version)


def _upsert(table: Any, products: pa.Table | pa.RecordBatchReader) -> None:
    table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(products)


def _read_batches(staging: Any, ids: set[str], schema: pa.Schema) -> pa.RecordBatchReader:
    """Stream the staged products with these ids, with null for columns of `schema` that the staging table lacks."""

    def read() -> Iterator[pa.RecordBatch]:
        for batch in staging.search().limit(None).to_batches(1024):
            chosen = batch.filter(pa.array([product_id in ids for product_id in batch["id"].to_pylist()], pa.bool_()))
            names = set(batch.schema.names)
            yield pa.record_batch(
                [chosen[f.name] if f.name in names else pa.nulls(chosen.num_rows, f.type) for f in schema],
                schema=schema,
            )

    return pa.RecordBatchReader.from_batches(schema, read())


def catalogue_uri(option: str) -> str:
    """Return the address in the option `catalogue`. Raises UserError if it is empty."""
    if not option:
        raise UserError(
            "catalogue= is empty: use catalogue=DIR, a folder or the address of an object store, or omit it.", status=2
        )
    return option if "://" in option else str(Path(option).expanduser())


def find_run_and_catalogue(run: str | None, catalogue: str | None, runs_dir: Path) -> tuple[Run, Catalogue]:
    """Find the run and the catalogue that the options of a search name.

    Args:
        run: None stands for the run that made `catalogue`, or without one for the newest run that has a catalogue.
        catalogue: None stands for the catalogue of the run.
        runs_dir: folder of the runs.

    Raises:
        UserError: if there is no such run, or `catalogue` is empty.
    """
    if catalogue is None:
        chosen = _find_run_with_catalogue(runs_dir) if run is None else find_finished_run(run, runs_dir)
        return chosen, Catalogue(str(chosen.catalogue))
    named = Catalogue(catalogue_uri(catalogue))
    if run is None and named.exists():
        run = metadata_of(named.open()).run
        _check_run_of_catalogue(Path(run), catalogue, runs_dir)
    return find_finished_run("latest" if run is None else run, runs_dir), named


def _check_run_of_catalogue(run: Path, catalogue: str, runs_dir: Path) -> None:
    """Raise UserError if a catalogue names a run that is neither the user's own nor stored together with it."""
    inside, around = run.resolve(), Path(catalogue).expanduser().resolve()
    if not (
        inside.is_relative_to(runs_dir.resolve()) or inside.is_relative_to(around) or around.is_relative_to(inside)
    ):
        raise UserError(
            f"catalogue={catalogue} names the run {run}, which is outside runs_dir={runs_dir}: add run={run} if you "
            "trust it."
        )


def _find_run_with_catalogue(runs_dir: Path) -> Run:
    """Find the newest finished run with a catalogue, else the newest finished run."""
    # An interrupted indexing leaves a folder without the products table.
    indexed = [run for run in list_runs(runs_dir) if (run.catalogue / f"{_TABLE}.lance").is_dir()]
    newest = next((run for run in reversed(indexed) if run.state == "finished"), None)
    if newest is None:
        return find_finished_run("latest", runs_dir)
    print(f"The newest run with a catalogue: {display_path(newest.path)}", file=sys.stderr)
    return newest
