"""A shop's own products: picture files, with or without a CSV or Parquet table that describes them."""

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from fashion_cnn.errors import UserError
from fashion_cnn.pictures import PREPARATION_VERSION, Preparation, UnreadablePictureError, decode, find_pictures
from fashion_cnn.pictures.files import is_picture_file, read_ahead
from fashion_cnn.retrieval.products import (
    MAX_TEXT_BYTES,
    PRODUCT_COLUMNS,
    RESERVED_COLUMNS,
    THUMBNAIL_SIDE,
    Picture,
    Pictures,
    Products,
    encode_thumbnail,
    longest_text,
)

Progress = Callable[[int, int], None]
_COLUMN_TYPES = PRODUCT_COLUMNS | {"image": pa.string()}
# Limits of a table: rows, and bytes of a CSV or of a Parquet file's values. A small file can hold any number of them.
_MAX_ROWS, _MAX_BYTES = 10_000_000, 500_000_000
_MAX_COLUMNS = 1000
_BATCH_ROWS = 10_000
_ARCHIVES = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
# Prefixes of LanceDB's own columns.
_LANCEDB_PREFIXES = ("_row", "_score", "_distance")


def products_from_files(
    images: str | Sequence[str] | None,
    table: str | None,
    progress: Progress,
    known_types: Mapping[str, pa.DataType] | None = None,
) -> Products:
    """Read products from pictures, from a CSV or Parquet table, or from both.

    Args:
        images: a folder, glob or list of pictures. Without a table each picture is a product, with its path below the
            folder as id, its file name as title and its parent folder as category. With a table, the folder of the
            table's pictures.
        table: a file with a column `id` and optional columns title, category, price and image (a file below `images`
            or beside the table; without this column the file is named like the id). Other columns are custom.
        progress: called with the number of pictures that are hashed and of all pictures.
        known_types: types of the catalogue's custom columns, which are kept if the values fit.

    Raises:
        UserError: if there is no product or the table cannot be used.
    """
    if table is None:
        rows, files = _from_pictures([] if images is None else images)
    else:
        rows, files = _from_table(Path(table).expanduser(), images, known_types or {})
    keys = []
    try:
        plain = rows.to_pylist()
    except (pa.ArrowException, ValueError, ArithmeticError) as error:  # such as durations that Python cannot hold
        raise UserError(f"products={table} holds a value that is out of range ({error}): correct it.") from error
    for row, (_, digest) in zip(plain, read_ahead(files, _digest), strict=True):
        keys.append(_content_key(row, digest))
        progress(len(keys), len(files))
    return Products(rows, tuple(keys), partial(_pictures_from_files, files))


def _pictures_from_files(files: Sequence[Path], rows: Iterable[int], preparation: Preparation) -> Pictures:
    min_pixels = max(preparation.min_pixels, THUMBNAIL_SIDE**2)

    def read(row: int) -> Picture | UnreadablePictureError:
        try:
            picture = decode(files[row], min_pixels=min_pixels)
            return Picture(preparation(picture), encode_thumbnail(picture))
        except UnreadablePictureError as error:
            return UnreadablePictureError(f"{files[row]} {error}")

    return read_ahead(rows, read)


def _digest(file: Path) -> str:
    """Return the SHA-256 of a file's content; empty if it cannot be read."""
    try:
        if not file.is_file():
            return ""
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return ""


def _content_key(row: dict[str, Any], digest: str) -> str:
    """Hash everything that makes it necessary to index a product again: its row, its picture, and the preparation."""
    return hashlib.sha256(json.dumps([row, digest, PREPARATION_VERSION], default=str).encode()).hexdigest()[:32]


def _from_pictures(images: str | Sequence[str]) -> tuple[pa.Table, list[Path]]:
    files = list(find_pictures(images).paths)
    folder = Path(images).expanduser() if isinstance(images, str) else None
    if folder and folder.is_file():
        folder = folder.parent
    paths = [file.relative_to(folder) if folder and file.is_relative_to(folder) else file for file in files]
    for path in paths:
        # Archives from other systems may unpack to undecodable file names.
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise UserError(f"The file name {path.as_posix()!a} is not UTF-8 and cannot be an id: rename it.") from None
    columns = {
        "id": [path.as_posix() for path in paths],
        "title": [" ".join(path.stem.replace("_", " ").replace("-", " ").split()) or path.stem for path in paths],
        # Pictures directly in the named folder have no category.
        "category": [path.parent.name or None if len(path.parts) > 1 else None for path in paths],
        "price": [None] * len(paths),
    }
    return pa.table(columns, schema=pa.schema(PRODUCT_COLUMNS)), files


def _from_table(
    path: Path, images: str | Sequence[str] | None, known_types: Mapping[str, pa.DataType]
) -> tuple[pa.Table, list[Path]]:
    table = _read_table(path, known_types)
    _check_products(table, path)
    folder = path.parent
    if isinstance(images, str) and Path(images).expanduser().is_dir():
        folder = Path(images).expanduser()
    elif images is not None:
        raise UserError(f"images={images} is not a folder: with products=, give the folder of the pictures.")
    ids = table["id"].to_pylist()
    if "image" in table.column_names:
        files = _files_below(folder, [name or "" for name in table["image"].to_pylist()], f"{path}, column image")
        table = table.drop_columns(["image"])
    else:
        pictures = sorted(file for file in folder.iterdir() if file.is_file() and is_picture_file(file))
        file_by_name = {file.stem: file for file in pictures} | {file.name: file for file in pictures}
        named_like = _files_below(folder, ids, f"{path} has no column image, and the id")
        files = [file_by_name.get(name, file) for name, file in zip(ids, named_like, strict=True)]
        if not set(ids) & file_by_name.keys():
            raise UserError(
                f"{path} has no column image, and no picture in {folder} is named like an id, such as {ids[0]}.jpg: "
                f"add a column image with file names. Its columns are {', '.join(table.column_names)}."
            )
    for name, kind in PRODUCT_COLUMNS.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(ids), kind))
    table = table.set_column(table.column_names.index("title"), "title", pc.coalesce(table["title"], table["id"]))
    custom = [name for name in table.column_names if name not in PRODUCT_COLUMNS]
    return table.select([*PRODUCT_COLUMNS, *custom]).combine_chunks(), files


def _files_below(folder: Path, names: Sequence[str], column: str) -> list[Path]:
    """Return the files of these names in a folder or below it.

    Links in the folder are followed, since its owner has made them; the author of the table may be someone else.

    Raises:
        UserError: if a file is elsewhere.
    """
    roots = (Path(os.path.normpath(folder.absolute())), folder.resolve())
    files = []
    for row, name in enumerate(names, start=1):
        # Without `..`, which the system would apply to the target of a link.
        path = Path(os.path.normpath(roots[0] / name))
        root = next((root for root in roots if path.is_relative_to(root)), None)
        if root is None:
            raise UserError(
                f"{column}, row {row}: {name} is not below {folder}: give images=DIR, the folder of all pictures."
            )
        files.append(folder / path.relative_to(root))
    return files


# Reading the table


def _read_table(path: Path, known_types: Mapping[str, pa.DataType]) -> pa.Table:
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise UserError(f"products={path} {problem}: give a CSV or Parquet file.")
    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    try:
        table = _drop_unnamed(_read_parquet(path) if is_parquet else _read_csv(path, known_types))
        _check_headings(table.column_names, path)
        columns = zip(table.column_names, table.columns, strict=True)
        types = {name: _COLUMN_TYPES.get(name, _target_type(column, known_types.get(name))) for name, column in columns}
        table = table.cast(pa.schema(types))
        for name, column in zip(table.column_names, table.columns, strict=True):
            if (longest := longest_text(column))[1] > MAX_TEXT_BYTES:
                raise UserError(
                    f"{path}, column {name}, row {longest[0] + 1}: a text of {longest[1]:,} bytes is too long, "
                    f"{MAX_TEXT_BYTES:,} are the most: shorten it."
                )
        # An empty text counts as null.
        return pa.table(
            [
                pc.if_else(pc.equal(column, ""), None, column) if pa.types.is_string(column.type) else column
                for column in table.columns
            ],
            schema=table.schema,
        )
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = None if is_parquet else _diagnose_csv(path)
        reason = reason or f"products={path} cannot be read ({str(error).splitlines()[0].rstrip('.')})"
        raise UserError(f"{reason}: give Parquet, or a CSV in UTF-8 with a header row and commas.") from error


def _read_parquet(path: Path) -> pa.Table:
    """Read a Parquet file in batches, with texts decoded; a repeated text takes no memory before it is counted."""
    with pyarrow.parquet.ParquetFile(path) as file:
        if file.metadata.num_rows > _MAX_ROWS:
            raise UserError(f"products={path} has {file.metadata.num_rows:,} rows: {_MAX_ROWS:,} are the most.")
        schema = file.schema_arrow
        _check_columns(len(schema), path)
    texts = [field.name for field in schema if _is_text(field.type)]
    batches, size = [], 0
    with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
        for batch in file.iter_batches(_BATCH_ROWS):
            size += sum(map(_decoded_bytes, batch.columns))
            if size > _MAX_BYTES:
                raise _too_large(path)
            columns = [column.dictionary_decode() if _has_texts(column.type) else column for column in batch.columns]
            batches.append(pa.record_batch(columns, names=schema.names))
    return pa.Table.from_batches(batches) if batches else schema.empty_table()


def _is_text(kind: pa.DataType) -> bool:
    is_type = pa.types
    tests = (is_type.is_string, is_type.is_large_string, is_type.is_binary, is_type.is_large_binary)
    return any(test(kind) for test in tests)


def _has_texts(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) and _is_text(kind.value_type)


def _decoded_bytes(column: pa.Array) -> int:
    """Return the bytes of a column without its dictionary."""
    if not _has_texts(column.type):
        return int(column.nbytes)
    return int(pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0)


def _check_columns(count: int, path: Path) -> None:
    if count > _MAX_COLUMNS:
        raise UserError(f"products={path} has {count:,} columns: {_MAX_COLUMNS:,} are the most.")


def _too_large(path: Path) -> UserError:
    return UserError(
        f"products={path} holds more than {_MAX_BYTES / 1e6:g} MB: shorten its columns, or index it in several parts."
    )


def _read_csv(path: Path, known_types: Mapping[str, pa.DataType]) -> pa.Table:
    """Read a CSV with the known types of its columns where the values fit, and inferred types elsewhere."""
    is_type = pa.types
    predicates = (is_type.is_string, is_type.is_boolean, is_type.is_integer, is_type.is_floating)
    expected = {name: kind for name, kind in known_types.items() if any(test(kind) for test in predicates)}
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    reading = pyarrow.csv.ReadOptions()
    while True:
        types = expected | _COLUMN_TYPES
        try:
            converting = pyarrow.csv.ConvertOptions(column_types=types)
            # Arrow would decompress a file that it opens by its name.
            with path.open("rb") as content:
                if content.read(5).startswith(_ARCHIVES):
                    raise UserError(f"products={path} is compressed: unpack it.")
                if (size := content.seek(0, os.SEEK_END)) > _MAX_BYTES:
                    raise _too_large(path)
                headings = _read_headings(path)
                _check_columns(len(headings), path)
                content.seek(0)
                return pyarrow.csv.read_csv(
                    content, read_options=reading, parse_options=parsing, convert_options=converting
                )
        except pa.ArrowInvalid as error:
            place = re.match(r"In CSV column #(\d+)", str(error))
            name = dict(enumerate(headings)).get(int(place[1])) if place else None
            if expected.pop(name or "", None) is None:
                if not name or name in types or reading.block_size == size:
                    raise
                # Arrow infers the type of a column from the first block: now from all rows.
                reading.block_size = size


def _read_headings(path: Path) -> list[str]:
    """Return the headings of a CSV. Raises ValueError if they cannot be read."""
    try:
        # Spreadsheets write a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _diagnose_csv(path: Path) -> str | None:
    """Name a usual mistake of spreadsheet exports, if there is one."""
    try:
        # Spreadsheets write a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), start=1):
                try:
                    float(row.get("price") or "0")
                except ValueError:
                    return f"{path}, row {number} (id {row.get('id')}): price={row['price']} is not a number like 14.40"
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8 (byte {error.start})"
    except (csv.Error, OSError):
        pass
    return None


def _drop_unnamed(table: pa.Table) -> pa.Table:
    """Drop unnamed columns that are empty or hold the row numbers of pandas."""
    selected = [
        place
        for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True))
        if name.strip() or not _is_row_index(column)
    ]
    return table.select(selected)


def _is_row_index(column: pa.ChunkedArray) -> bool:
    if column.null_count == len(column):
        return True
    return pa.types.is_integer(column.type) and pc.count_distinct(column, mode="all").as_py() == len(column)


def _target_type(column: pa.ChunkedArray, known: pa.DataType | None) -> pa.DataType:
    """Return the known type of a column if its values fit, else its own type."""
    kind = _plain_type(column.type)
    if known is None:
        return kind
    widens = pa.types.is_integer(kind) and pa.types.is_floating(known)
    return known if widens or column.null_count == len(column) else kind


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Replace the encodings that pandas and polars use for text by the plain type."""
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    is_text = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    # An empty column may hold text later.
    return pa.string() if is_text or pa.types.is_null(kind) else kind


# Checking the table


def _check_headings(headings: Sequence[str], path: Path) -> None:
    """Check that LanceDB accepts the headings as column names."""
    if repeated := [name for name, count in Counter(headings).items() if name.strip() and count > 1]:
        raise UserError(f"{path} repeats {len(repeated)} headings, such as {repeated[0]}: each has to be unique.")
    for place, name in enumerate(headings, start=1):
        if not name.strip():
            raise UserError(f"{path}: column {place} has no heading: add one, or remove the column.")
        if set(name) & set(".`"):
            raise UserError(f"{path} has a column {name}: rename it without . and `.")
        if name == "*" or name.startswith(_LANCEDB_PREFIXES):
            raise UserError(f"{path} has a column {name}, which LanceDB reserves: rename it.")


def _check_products(table: pa.Table, path: Path) -> None:
    """Check that every row has an id of its own, and that no column has a reserved name."""
    if "id" not in table.column_names:
        semicolons = " The columns are separated by ;: use commas." if ";" in table.column_names[0] else ""
        raise UserError(
            f"{path} has no column id, but {', '.join(table.column_names)}: each product needs an id.{semicolons}"
        )
    if not table.num_rows:
        raise UserError(f"{path} holds no product.")
    if reserved := set(table.column_names) & set(RESERVED_COLUMNS):
        raise UserError(f"{path} has a column {min(reserved)}, which the catalogue fills in itself: rename it.")
    ids = table["id"].to_pylist()
    if missing := [number for number, product_id in enumerate(ids, start=1) if not product_id]:
        raise UserError(f"{path}: {len(missing)} rows have no id, the first is row {missing[0]}.")
    if repeated := [product_id for product_id, count in Counter(ids).items() if count > 1]:
        raise UserError(f"{path} repeats {len(repeated)} ids, such as {repeated[0]}.")
