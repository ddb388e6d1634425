"""Catalogue of products on disk: a LanceDB table of vectors, thumbnails and attributes.

Indexing writes new products batch by batch to a staging table and moves them into the products table at the end, which
takes several LanceDB versions. The last of them gets a tag, and readers open the tagged version. They see the catalogue
before or after an indexing, never in between, and an interrupted indexing resumes from the staging table.

`storage_errors_reported` turns errors of LanceDB and Arrow into a UserError: for a full disk, or for damaged files,
which `rebuild=true` replaces.

The schema of the table stores the network and the settings of the vectors. Commands name a catalogue by its address or
by its run.
"""

import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import lancedb
import pyarrow as pa
from lancedb.expr import col
from lancedb.index import FTS

from fashion_cnn.errors import UserError, disk_error
from fashion_cnn.pictures.photographs import PretrainedSettings, check_settings
from fashion_cnn.pictures.preparation import Invert
from fashion_cnn.retrieval.products import (
    TEXT_COLUMNS,
    catalogue_schema,
    custom_columns,
    describe_type,
    text_column_of,
)
from fashion_cnn.runs import Run, display_path, find_finished_run, list_runs
from fashion_cnn.runs.damage import read_regular
from fashion_cnn.runs.files import check_links, lock_file

_METADATA_KEY = b"fashion_cnn"
# Random id of a table: the versions of a rebuilt table start again at 1.
_TABLE_ID_KEY = b"fashion_cnn_made"
_TABLE, _STAGING = "products", "staging"
# Tag of the version that readers open.
_READY_TAG = "ready"
# Time for which readers may keep an older version open.
_VERSION_LIFETIME = timedelta(days=1)
_FOREVER = timedelta(days=36500)
# Time to wait for another process that changes the catalogue: longer than a server needs for one product.
_LOCK_SECONDS = 5
# LanceDB's messages end with a place in its source code.
_SOURCE_LOCATION = re.compile(r",? ?/?[\w./-]+\.rs:\d+(:\d+)?")
_MAX_REASON_LENGTH = 200
# Limits of the metadata.
_MAX_DIMENSIONS, _MAX_TEMPERATURE = 100_000, 1e6
# Names of the files that LanceDB renames when they are complete.
_UNFINISHED = re.compile(r"\.tmp\w{6}|.+\.manifest#\d+")
# Numbers of fields in Lance's manifests: the list of other places, and the path in each of them.
_BASE_PATHS, _PATH = 18, 4
# Wire types of Protocol Buffers: two of them, and the length in bytes of the values of two others.
_VARINT, _BYTES, _FIXED_LENGTHS = 0, 2, {1: 8, 5: 4}
_MAX_VARINT_BITS = 63
# Maximum size of a manifest, which lists the files of a table: a few kilobytes for a million products.
_MAX_MANIFEST_BYTES = 100_000_000
# Each complete file of vectors, columns or an index ends with these bytes.
_LANCE_END = b"LANC"


class DamagedCatalogueError(UserError):
    """The files of a catalogue cannot be read, such as ones that were copied in part."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(f"The catalogue {uri} is damaged ({reason}): index again with rebuild=true.")


@contextmanager
def storage_errors_reported(uri: str) -> Iterator[None]:
    """Turn errors of LanceDB and Arrow in the block into a UserError.

    Args:
        uri: address of the catalogue, for the message.

    Raises:
        UserError: for errors of the disk, such as a full one.
        DamagedCatalogueError: for all other errors.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # A panic of LanceDB's code in Rust derives from BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = _SOURCE_LOCATION.sub("", (str(error) or type(error).__name__).splitlines()[0])
        if "panic" in reason or isinstance(error, RecursionError):
            reason = "a file cannot be decoded"
        raise disk_error(error, uri) or DamagedCatalogueError(uri, reason[:_MAX_REASON_LENGTH]) from error


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
        pretrained: what the vectors of a pretrained network are made of; None for the network of a run.
        text_columns: columns that words are searched in; the title in older catalogues.
    """

    network: str
    run: str
    dimensions: int
    flip_average: bool
    invert: Invert
    note: str = ""
    class_weight: float = 0.0
    temperature: float | None = None
    pretrained: PretrainedSettings | None = None
    text_columns: tuple[str, ...] = TEXT_COLUMNS

    @property
    def source(self) -> str:
        """The option that chooses the network."""
        return "embedding=pretrained" if self.pretrained else f"run={self.run}"


class TableVersion(NamedTuple):
    """Version of a table.

    Attributes:
        table_id: random id of the table, which a rebuild changes.
        version: number that increases with every change.
    """

    table_id: str
    version: int


def metadata_of(table: Any) -> CatalogueMetadata:
    """Read the metadata of a LanceDB table of products. Raises ValueError or TypeError if they are damaged."""
    stored = json.loads(table.schema.metadata[_METADATA_KEY])
    if stored.get("pretrained") is not None:
        stored["pretrained"] = PretrainedSettings(**stored["pretrained"])
    stored["text_columns"] = tuple(stored.get("text_columns", TEXT_COLUMNS))
    metadata = CatalogueMetadata(**stored)
    texts = (metadata.network, metadata.run, metadata.note, *metadata.text_columns)
    numbers = (metadata.class_weight, 1.0 if metadata.temperature is None else metadata.temperature)
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(isinstance(number, int | float) for number in numbers)
        or not isinstance(metadata.dimensions, int)
        # Comparisons are also false for what is not a number, and exact for integers that no float can hold.
        or not 1 <= metadata.dimensions <= _MAX_DIMENSIONS
        or not 0 <= metadata.class_weight <= 1
        or not 0 < numbers[1] <= _MAX_TEMPERATURE
        or not isinstance(metadata.flip_average, bool)
        or metadata.invert not in get_args(Invert)
    ):
        raise ValueError("its metadata are invalid")
    return metadata


def _check_columns(schema: pa.Schema, metadata: CatalogueMetadata) -> None:
    """Raise ValueError if a column of every catalogue is missing or has another type."""
    for field in catalogue_schema(metadata.dimensions, [], metadata.text_columns):
        if field.name not in schema.names:
            raise ValueError(f"its column {field.name} is missing")
        if (kind := schema.field(field.name).type) != field.type:
            raise ValueError(f"its column {field.name} holds {kind} instead of {field.type}")


def version_of(table: Any) -> TableVersion:
    """Return the checked-out version of a LanceDB table of products."""
    return TableVersion((table.schema.metadata or {}).get(_TABLE_ID_KEY, b"").decode(), int(table.version))


def check_compatible(stored: CatalogueMetadata, new: CatalogueMetadata, uri: str) -> None:
    """Check that new products can be added to a catalogue.

    Args:
        stored: metadata of the catalogue.
        new: metadata of the new products.
        uri: address of the catalogue, for messages.

    Raises:
        UserError: if their vectors cannot be compared, or if they mix a data set with the products of a shop.
    """
    if stored.pretrained and new.pretrained:
        check_settings(stored.pretrained, uri)
        for name, value in asdict(stored.pretrained).items():
            if value != getattr(new.pretrained, name):
                raise UserError(
                    f"{uri} was indexed with photographs.{name}={str(value).lower()}: use the same value, or "
                    "rebuild=true to replace the catalogue."
                )
    if stored.network != new.network:
        raise UserError(
            f"{uri} was indexed with another network: use {stored.source}, another catalogue=DIR, or rebuild=true to "
            "replace it."
        )
    if stored.dimensions != new.dimensions and stored.class_weight == new.class_weight:
        raise UserError(f"{uri} was indexed by another version of fashion_cnn: use rebuild=true to replace it.")
    for option in ("class_weight", "flip_average", "invert", "text_columns"):
        if (value := getattr(stored, option)) != getattr(new, option):
            setting = f"{option}={str(value).lower()}"
            if option == "text_columns":
                setting = f"'text_columns=[{','.join(stored.text_columns)}]'"
            raise UserError(
                f"{uri} was indexed with {setting}: use the same value, or rebuild=true to replace the catalogue."
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
        if "://" not in self.uri:
            _check_tables(Path(self.uri))
        # Connecting creates a missing folder.
        return lancedb.connect(self.uri)

    # Reading

    def exists(self) -> bool:
        """Return whether readers can open a version. Raises UserError if the catalogue is damaged."""
        table = self._find_table(_TABLE)
        return table is not None and self._checkout_complete(table)

    def open(self) -> Any:
        """Open the LanceDB table for readers: the version that the last complete indexing left.

        Raises:
            UserError: if there is no complete version, or the catalogue is damaged.
        """
        table = self.open_latest()
        if not self._checkout_complete(table):
            raise UserError(
                f"The catalogue {self.uri} is not complete: its first indexing is running, or was interrupted (run it "
                "again)."
            )
        return table

    def open_latest(self) -> Any:
        """Open the latest version of the LanceDB table, to change it inside a `transaction`.

        Raises:
            UserError: if there is no catalogue, or it is damaged.
        """
        table = self._find_table(_TABLE)
        if table is None:
            stopped = " (an indexing was interrupted: run it again)" if _STAGING in self._table_names() else ""
            raise UserError(f"There is no catalogue at {self.uri}{stopped}: python -m fashion_cnn.index makes one.")
        return table

    def table_version(self) -> TableVersion:
        """Return the version that readers open. Raises UserError if there is none."""
        return version_of(self.open())

    def metadata(self) -> CatalogueMetadata:
        """Return network and settings of the version that readers open. Raises UserError if there is none."""
        table = self.open()
        with storage_errors_reported(self.uri):
            return metadata_of(table)

    def content_keys(self, *, staged: bool = False) -> dict[str, str]:
        """Return the content key of each product by its id, from the products table or the staging table."""
        table = self._find_table(_STAGING if staged else _TABLE)
        if table is None:
            return {}
        with storage_errors_reported(self.uri):
            columns = table.search().select(["id", "key"]).limit(None).to_arrow()
        return dict(zip(columns["id"].to_pylist(), columns["key"].to_pylist(), strict=True))

    def column_types(self) -> dict[str, pa.DataType]:
        """Return the type of each custom column by its name; empty without a catalogue."""
        table = self._find_table(_TABLE)
        return {} if table is None else {field.name: field.type for field in custom_columns(table.schema)}

    def non_empty_columns(self) -> set[str]:
        """Return the names of the price and the custom columns that hold any value."""
        table = self._find_table(_TABLE)
        if table is None:
            return set()
        names = ["price", *(field.name for field in custom_columns(table.schema))]
        with storage_errors_reported(self.uri):
            columns = table.search().select(names).limit(None).to_arrow()
        return {name for name in names if columns[name].null_count < len(columns)}

    # Changing

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Publish the changes of the block to readers when it ends, or none of them after an error.

        Raises:
            LockedError: if another process on this machine is changing the catalogue for more than a few seconds.
            UserError: if the folder is not writable, or a link in it leads elsewhere.
        """
        if "://" not in self.uri:
            check_links(Path(self.uri), ".lock", f"{_TABLE}.lance", f"{_STAGING}.lance")
        with self._lock():
            # A damaged catalogue may be rebuilt in the block.
            with suppress(DamagedCatalogueError), storage_errors_reported(self.uri):
                self._discard_unpublished_changes()
                table = self._find_table(_TABLE)
                if table is not None and self._checkout_complete(table) and not _is_tagged(table):
                    _tag(table)
            with self._written_completely(_TABLE):
                yield
            table = self._find_table(_TABLE)
            if table is not None:
                with storage_errors_reported(self.uri):
                    _tag(table)
                    # LanceDB refuses to remove a tagged version, so the tag has to move first.
                    published = table.version
                    table.optimize(cleanup_older_than=_VERSION_LIFETIME)
                    # If `optimize` merged files in further versions, the next change would discard these without a tag.
                    if table.version != published:
                        _tag(table)
                self._remove_unfinished_files()

    def begin(self, metadata: CatalogueMetadata, columns: Sequence[pa.Field], *, rebuild: bool = False) -> None:
        """Create the staging table, or keep that of an interrupted indexing. The catalogue itself does not change.

        Args:
            metadata: network and settings of the new vectors.
            columns: custom columns of the new products.
            rebuild: replace the whole catalogue on commit.

        Raises:
            UserError: if the new products do not fit the catalogue (`check_compatible`), or a column changed its type.
        """
        if not rebuild and (table := self._find_table(_TABLE)) is not None:
            check_compatible(metadata_of(table), metadata, self.uri)
            types = self.column_types()
            for field in columns:
                if (stored := types.get(field.name, field.type)) != field.type:
                    raise UserError(
                        f"Column {field.name} now holds {describe_type(field.type)}, but {describe_type(stored)} in "
                        f"{self.uri}: restore its type, or use rebuild=true."
                    )
        stored_metadata = {_METADATA_KEY: json.dumps(asdict(metadata)).encode()}
        schema = catalogue_schema(metadata.dimensions, columns, metadata.text_columns).with_metadata(stored_metadata)
        staging = self._readable_staging()
        # The metadata are compared without the path of the run, which may be written in another way.
        if (
            staging is None
            or not staging.schema.equals(schema)
            or replace(metadata_of(staging), run=metadata.run) != metadata
        ):
            with storage_errors_reported(self.uri):
                self._drop(_STAGING)
                self._database.create_table(_STAGING, schema=schema)

    def stage(self, products: pa.Table) -> None:
        """Write indexed products to the staging table."""
        with self._written_completely(_STAGING), storage_errors_reported(self.uri):
            _upsert(self._database.open_table(_STAGING), products)

    def commit(self, ids: Iterable[str], *, rebuild: bool = False) -> None:
        """Move the staged products with these ids into the products table."""
        table = self._replaceable_table() if rebuild else self._find_table(_TABLE)
        selected = set(ids)
        with storage_errors_reported(self.uri):
            staging = self._database.open_table(_STAGING)
            if rebuild or table is None:
                if table is None:
                    self._drop(_TABLE)
                table_id = {_TABLE_ID_KEY: secrets.token_hex(8).encode()}
                schema = staging.schema.with_metadata(staging.schema.metadata | table_id)
                batches = _read_batches(staging, selected, schema)
                table = self._database.create_table(_TABLE, batches, schema=schema, mode="overwrite")
            else:
                if added := [field for field in staging.schema if field.name not in table.schema.names]:
                    table.add_columns(added)
                if selected:
                    _upsert(table, _read_batches(staging, selected, table.schema))
                absent = set(table.schema.names) - set(staging.schema.names)
                if absent and (empty := absent - self.non_empty_columns()):
                    table.drop_columns(sorted(empty))
            _optimize(table)
            self._drop(_STAGING)

    def row(self, product_id: str) -> dict[str, Any] | None:
        """Return all columns of a product in the latest version; None if there is none. For use in a `transaction`."""
        table = self.open_latest()
        with storage_errors_reported(self.uri):
            rows: list[dict[str, Any]] = table.search().where(col("id").isin([product_id])).limit(1).to_list()
        return rows[0] if rows else None

    def put(self, products: pa.Table) -> None:
        """Add products, or replace those with the same ids. For use in a `transaction`.

        Args:
            products: rows with all columns of the catalogue.
        """
        table = self.open_latest()
        with self._written_completely(_TABLE), storage_errors_reported(self.uri):
            _upsert(table, products.select(table.schema.names).cast(table.schema))
            _optimize(table)

    def remove(self, ids: Sequence[str]) -> int:
        """Delete products and return their number. Raises UserError if there is no catalogue."""
        table = self.open_latest()
        with storage_errors_reported(self.uri):
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
        busy = f"Another process is indexing into {self.uri}: try again when it is done."
        return lock_file(Path(self.uri, ".lock"), busy, timeout=_LOCK_SECONDS, instead="choose another catalogue=DIR")

    def _find_table(self, name: str) -> Any | None:
        """Open a table of this program; None if there is none, or only a folder that holds no version of it.

        Raises:
            UserError: if the table is damaged, or another program made it.
        """
        if name not in self._table_names():
            return None
        with storage_errors_reported(self.uri):
            try:
                table = self._database.open_table(name)
            except ValueError as error:
                if "was not found" in str(error):
                    return None
                raise
            self._check_metadata(table)
            _check_columns(table.schema, metadata_of(table))
        return table

    def _check_metadata(self, table: Any) -> None:
        """Raise UserError for the table of another program: LanceDB imports and calls what some metadata name."""
        keys = (table.schema.metadata or {}).keys()
        if _METADATA_KEY not in keys or not all(key.startswith(_METADATA_KEY) for key in keys):
            raise UserError(
                f"The table {table.name} in {self.uri} was not made by fashion_cnn.index: use another catalogue=DIR."
            )

    def _checkout_complete(self, table: Any) -> bool:
        """Check out the version for readers; return False if the first indexing has not ended."""
        with storage_errors_reported(self.uri):
            if _is_tagged(table):
                table.checkout(_READY_TAG)
                self._check_metadata(table)
                return True
        # Catalogues of older versions have neither an id nor a tag.
        return _TABLE_ID_KEY not in table.schema.metadata

    def _readable_staging(self) -> Any | None:
        """Open the staging table of an interrupted indexing; None if it is missing or damaged."""
        with suppress(DamagedCatalogueError), storage_errors_reported(self.uri):
            staging = self._find_table(_STAGING)
            if staging is not None:
                _read_all(staging)
            return staging
        return None

    def _replaceable_table(self) -> Any | None:
        """Open the products table to replace it, so that readers keep its versions; None if it is damaged."""
        with suppress(DamagedCatalogueError), storage_errors_reported(self.uri):
            table = self._find_table(_TABLE)
            if table is not None:
                table.tags.list()
                table.list_versions()
            return table
        return None

    def _discard_unpublished_changes(self) -> None:
        """Return to the version of readers if a failed change, or an interrupted indexing, left another one after it.

        The products that an indexing has embedded are in the staging table almost to its end.
        """
        table = self._find_table(_TABLE)
        if table is None:
            return
        if (ready := table.tags.list().get(_READY_TAG)) is not None:
            if ready["version"] != table.version:
                table.checkout(_READY_TAG)
                table.restore()
        elif _TABLE_ID_KEY in table.schema.metadata:
            try:
                with storage_errors_reported(self.uri):
                    _read_all(table)
            except DamagedCatalogueError:
                self._drop(_TABLE)

    @contextmanager
    def _written_completely(self, name: str) -> Iterator[None]:
        """Raise UserError if a file that the block wrote is cut.

        LanceDB does not notice that a full disk took only a part of the last bytes of a file.
        """
        before = self._files(name)
        yield
        for file in self._files(name) - before:
            with file.open("rb") as content:
                content.seek(max(0, file.stat().st_size - len(_LANCE_END)))
                if content.read() != _LANCE_END:
                    raise UserError(
                        f"{self.uri} cannot be used (a file was written only in part): free some space, or choose "
                        "another directory."
                    )

    def _remove_unfinished_files(self) -> None:
        """Remove what killed processes left of files that LanceDB was writing; no other process writes at this time."""
        if "://" not in self.uri:
            for file in Path(self.uri, f"{_TABLE}.lance").rglob("*"):
                if _UNFINISHED.fullmatch(file.name) and file.is_file() and not file.is_symlink():
                    # A file that cannot be removed only takes space.
                    with suppress(OSError):
                        file.unlink()

    def _files(self, name: str) -> set[Path]:
        return set() if "://" in self.uri else set(Path(self.uri, f"{name}.lance").rglob("*.lance"))

    def _drop(self, name: str) -> None:
        """Delete a table, whatever its folder holds."""
        try:
            if name in self._table_names():
                self._database.drop_table(name)
        except Exception:
            if "://" in self.uri:
                raise
        if "://" not in self.uri:
            folder = Path(self.uri, f"{name}.lance")
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
            else:
                folder.unlink(missing_ok=True)

    def _table_names(self) -> list[str]:
        if "://" in self.uri:
            return list(self._database.list_tables().tables)
        # LanceDB fails at links in the folder that lead to themselves.
        return [path.stem for path in Path(self.uri).glob("*.lance") if path.is_dir()]


def _check_tables(folder: Path) -> None:
    """Check the files of the tables in a local catalogue before LanceDB opens them, and those that they lead to.

    Raises:
        UserError: if one is no regular file, which could block for ever, or a table reads files of another place, which
            may be any address.
    """
    tables = [path for path in folder.glob("*.lance") if path.is_dir()]
    check_links(folder, *(table.name for table in tables))
    for file in (Path(parent, name) for table in tables for parent, _, names in os.walk(table) for name in names):
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is not a regular file: delete it.")
        if file.suffix == ".manifest":
            _check_manifest(file)


def _check_manifest(file: Path) -> None:
    """Raise UserError if a version of a table reads files of another place, as shallow clones and branches do."""
    # Another process may remove the file; LanceDB reports a damaged one.
    with suppress(FileNotFoundError, IndexError):
        try:
            content = read_regular(file, _MAX_MANIFEST_BYTES)
        except ValueError as error:
            raise UserError(f"{file} is damaged ({error}): take it from a copy of the catalogue.") from error
        start = int.from_bytes(content[-16:-8], "little") + 4
        for number, value in _protobuf_fields(content[start:-16]):
            if number == _BASE_PATHS and isinstance(value, bytes):
                path = next((value for number, value in _protobuf_fields(value) if number == _PATH), b"")
                place = path.decode(errors="replace") if isinstance(path, bytes) else ""
                raise UserError(
                    f"The table {file.parents[1]} reads files of another place, {place[:_MAX_REASON_LENGTH]}: use the "
                    "catalogue there, or index into another catalogue=DIR."
                )


def _protobuf_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message. Raises IndexError if it is cut."""
    position = 0

    def read_integer() -> int:
        nonlocal position
        value = shift = 0
        while True:
            if shift > _MAX_VARINT_BITS:  # A longer number takes time that grows with the square of its length.
                raise IndexError(position)
            byte = message[position]
            position, value, shift = position + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while position < len(message):
        number, kind = divmod(read_integer(), 8)
        if kind == _VARINT:
            yield number, read_integer()
            continue
        length = read_integer() if kind == _BYTES else _FIXED_LENGTHS.get(kind, 0)
        if position + length > len(message):
            raise IndexError(length)
        yield number, message[position : position + length]
        position += length


def index_names(table: Any, column: str) -> list[str]:
    """Return the names of LanceDB's indices of a column. Only a table with products can have any."""
    return [index.name for index in table.list_indices() if list(index.columns) == [column]]


def _optimize(table: Any) -> None:
    """Create the full-text index if it is missing, and merge small files into large ones."""
    column = text_column_of(table.schema)
    if not index_names(table, column) and table.count_rows():
        table.create_index(column, config=FTS(stem=True, remove_stop_words=True, ascii_folding=True))
    table.optimize(cleanup_older_than=_FOREVER)


def _read_all(table: Any) -> None:
    """Read all rows, which fails if a file is damaged."""
    for _ in table.search().limit(None).to_batches(1024):
        pass


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

    A pretrained network belongs to no run: the folder of the catalogue is returned in its place.

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
        metadata = metadata_of(named.open_latest())
        if metadata.pretrained:
            return Run(Path(named.uri)), named
        # The path is resolved only once, so that the checked path is the one that is opened.
        stored = metadata.run
        try:
            path = Path(stored).expanduser().resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"catalogue={catalogue} names the run {stored[:_MAX_REASON_LENGTH]}, which is not a path ({error}): "
                "add run=RUN."
            ) from error
        _check_run_of_catalogue(path, catalogue, runs_dir)
        run = str(path)
    try:
        return find_finished_run("latest" if run is None else run, runs_dir), named
    except UserError:
        if run is None:
            named.open()  # fails: without a catalogue there, a missing run is not what is wrong
        raise


def find_network_of_catalogue(run: str, catalogue: str, runs_dir: Path) -> tuple[Run, CatalogueMetadata | None]:
    """Find where the network that made a catalogue is stored.

    Args:
        run: `latest` stands for the run that made the catalogue.
        catalogue: the catalogue.
        runs_dir: folder of the runs.

    Returns:
        The run and None, or for a pretrained network the folder of the catalogue and its metadata.

    Raises:
        UserError: if there is no such run or no complete catalogue.
    """
    chosen, named = find_run_and_catalogue(None if run == "latest" else run, catalogue, runs_dir)
    metadata = named.metadata()
    return chosen, metadata if metadata.pretrained else None


def _check_run_of_catalogue(run: Path, catalogue: str, runs_dir: Path) -> None:
    """Raise UserError if a catalogue names a run that is neither the user's own nor stored together with it."""
    around = Path(catalogue).expanduser().resolve()
    if not (run.is_relative_to(runs_dir.resolve()) or run.is_relative_to(around) or around.is_relative_to(run)):
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
