"""A shop's own products: picture files, with or without a CSV or Parquet table that describes them."""

import csv
import hashlib
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from fashion_cnn.errors import UserError, pluralize
from fashion_cnn.pictures import (
    PREPARATION_VERSION,
    THUMBNAIL_SIDE,
    Preparation,
    UnreadablePictureError,
    decode,
    encode_thumbnail,
    find_pictures,
)
from fashion_cnn.pictures.files import is_picture_file, read_ahead
from fashion_cnn.retrieval.products import (
    MAX_TEXT_BYTES,
    PRODUCT_COLUMNS,
    RESERVED_COLUMNS,
    OmittedRow,
    Picture,
    Pictures,
    Products,
    describe_type,
    longest_text,
)

Progress = Callable[[int, int], None]
_COLUMN_TYPES = PRODUCT_COLUMNS | {"image": pa.string()}
# Maximum number of rows, and of bytes of a CSV or of the values in a Parquet file, which compresses repeated values.
_MAX_ROWS, _MAX_BYTES = 10_000_000, 500_000_000
_MAX_COLUMNS = 1000
_BATCH_ROWS = 10_000
_ARCHIVES = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
# Separators of spreadsheet exports; the header shows which one a file has.
_DELIMITERS = (",", ";", "\t")
_MAX_HEADER_BYTES = 100_000
# Characters that separate thousands in any language, beside the point and the comma.
_GROUPING = str.maketrans("", "", " '\u00a0\u2009\u202f\u2019")
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

    Returns:
        The products, and the rows of the table that are left out: without an id, with one that was there before, with a
        price that is no number, or with too few or too many columns.

    Raises:
        UserError: if there is no product, the table cannot be used, or more than half of its rows are left out.
    """
    omitted: tuple[OmittedRow, ...] = ()
    if table is None:
        rows, files = _from_pictures([] if images is None else images)
    else:
        rows, files, omitted = _from_table(Path(table).expanduser(), images, known_types or {})
    keys = []
    try:
        plain = rows.to_pylist()
    except (pa.ArrowException, ValueError, ArithmeticError) as error:  # such as durations that Python cannot hold
        raise UserError(f"products={table} holds a value that is out of range ({error}): correct it.") from error
    for row, (_, digest) in zip(plain, read_ahead(files, _digest), strict=True):
        keys.append(content_key(row, digest))
        progress(len(keys), len(files))
    return Products(rows, tuple(keys), partial(_pictures_from_files, files), omitted=omitted)


def _pictures_from_files(files: Sequence[Path], rows: Iterable[int], preparation: Preparation) -> Pictures:
    min_pixels = max(preparation.min_pixels, THUMBNAIL_SIDE**2)

    def read(row: int) -> Picture | UnreadablePictureError:
        try:
            picture = decode(files[row], min_pixels=min_pixels)
            return Picture(preparation.array(picture), encode_thumbnail(picture))
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


def content_key(row: dict[str, Any], digest: str) -> str:
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
) -> tuple[pa.Table, list[Path], tuple[OmittedRow, ...]]:
    table, numbers, omitted = _read_table(path, known_types)
    folder = path.parent
    if isinstance(images, str) and Path(images).expanduser().is_dir():
        folder = Path(images).expanduser()
    elif images is not None:
        raise UserError(f"images={images} is not a folder: with products=, give the folder of the pictures.")
    ids = table["id"].to_pylist()
    if "image" in table.column_names:
        names = [name or "" for name in table["image"].to_pylist()]
        files = _files_below(folder, names, numbers, f"{path}, column image")
        table = table.drop_columns(["image"])
    else:
        pictures = sorted(file for file in folder.iterdir() if file.is_file() and is_picture_file(file))
        file_by_name = {file.stem: file for file in pictures} | {file.name: file for file in pictures}
        named_like = _files_below(folder, ids, numbers, f"{path} has no column image, and the id")
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
    return table.select([*PRODUCT_COLUMNS, *custom]).combine_chunks(), files, omitted


def _files_below(folder: Path, names: Sequence[str], numbers: Sequence[int], column: str) -> list[Path]:
    """Return the files of these names in a folder or below it.

    Links in the folder are followed, since its owner has made them; the author of the table may be someone else.

    Raises:
        UserError: if a file is elsewhere.
    """
    roots = (Path(os.path.normpath(folder.absolute())), folder.resolve())
    files = []
    for row, name in zip(numbers, names, strict=True):
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


def _read_table(
    path: Path, known_types: Mapping[str, pa.DataType]
) -> tuple[pa.Table, list[int], tuple[OmittedRow, ...]]:
    """Return the rows that can be used, their numbers from 1 in the file, and the others with the reasons."""
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise UserError(f"products={path} {problem}: give a CSV or Parquet file.")
    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    try:
        table, omitted = (_read_parquet(path), []) if is_parquet else _read_csv(path, known_types)
        table = _drop_unnamed(table)
        _check_headings(table.column_names, path)
        columns = zip(table.column_names, table.columns, strict=True)
        types = {name: _COLUMN_TYPES.get(name, _target_type(column, known_types.get(name))) for name, column in columns}
        if "price" in types and _is_text(_plain_type(table["price"].type)):
            types["price"] = pa.string()
        table = table.cast(pa.schema(types))
        numbers = _row_numbers(table.num_rows, omitted)
        for name, column in zip(table.column_names, table.columns, strict=True):
            row, size = longest_text(column)
            if size > MAX_TEXT_BYTES:
                raise UserError(
                    f"{path}, column {name}, row {numbers[row]}: a text of {size:,} bytes is too long, "
                    f"{MAX_TEXT_BYTES:,} are the most: shorten it."
                )
        # An empty text counts as null.
        table = pa.table(
            [
                pc.if_else(pc.equal(column, ""), None, column) if pa.types.is_string(column.type) else column
                for column in table.columns
            ],
            schema=table.schema,
        )
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = None if is_parquet else _encoding_error(path)
        reason = reason or f"products={path} cannot be read ({str(error).splitlines()[0].rstrip('.')})"
        raise UserError(f"{reason}: give Parquet, or a CSV in UTF-8 with a header row and commas.") from error
    _check_columns(table, path)
    return _usable_rows(table, numbers, omitted, path)


def _row_numbers(rows: int, omitted: Sequence[OmittedRow]) -> list[int]:
    """Return the number in the file, from 1 without the header, of each row that was read."""
    left_out = {row.number for row in omitted}
    return [number for number in range(1, rows + len(left_out) + 1) if number not in left_out]


def _usable_rows(
    table: pa.Table, numbers: Sequence[int], omitted: Sequence[OmittedRow], path: Path
) -> tuple[pa.Table, list[int], tuple[OmittedRow, ...]]:
    """Leave out rows without an id, with the id of an earlier row, or with an invalid price.

    Args:
        table: the rows that were read.
        numbers: number in the file of each of them.
        omitted: rows that could not be read.
        path: the file, for an error message.

    Returns:
        See `_read_table`.
    """
    total = table.num_rows + len(omitted)
    ids = table["id"].to_pylist()
    reasons: dict[int, str] = {}
    if "price" in table.column_names:
        prices = table["price"]
        if pa.types.is_string(prices.type):
            prices, reasons = _parse_prices(prices)
        # A price that is not a number (NaN) is how some programs write a missing one in Parquet.
        prices = pc.if_else(pc.is_nan(prices), None, prices)
        table = table.set_column(table.column_names.index("price"), "price", prices)
    first_rows: dict[str, int] = {}
    for row, (product_id, number) in enumerate(zip(ids, numbers, strict=True)):
        if not product_id:
            reasons[row] = "it has no id"
        elif (first := first_rows.setdefault(product_id, number)) != number:
            reasons[row] = f"its id is in row {first} too"
    omitted = [*omitted, *(OmittedRow(numbers[row], ids[row] or "", reason) for row, reason in reasons.items())]
    omitted.sort(key=lambda row: row.number)
    if len(omitted) > total / 2:
        raise UserError(
            f"{path}: {len(omitted):,} of {pluralize(total, 'row')} cannot be used, the first is {omitted[0]}. "
            "Nothing was indexed: correct the table."
        )
    kept = [row for row in range(table.num_rows) if row not in reasons]
    return table.take(kept), [numbers[row] for row in kept], tuple(omitted)


def _parse_prices(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, dict[int, str]]:
    """Convert texts to prices, also with a decimal comma, separated thousands, or a currency.

    Point and comma have the same meaning in the whole column.

    Returns:
        The prices, and by row why a text is no price.
    """
    with suppress(pa.ArrowInvalid):
        prices = pc.cast(column, pa.float64())
        # Arrow also reads texts such as `nan` and `1e999`.
        if pc.all(pc.is_finite(prices)).as_py() is not False:
            return prices, {}
    texts = column.to_pylist()
    numbers = [None if text is None else _strip_currency(text) for text in texts]
    mark = _decimal_mark([number for number in numbers if number])
    values: list[float | None] = []
    reasons = {}
    for row, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        possible = set() if number is None else _price_values(number, mark)
        values.append(possible.pop() if len(possible) == 1 else None)
        if possible:
            reasons[row] = f"price={text} may be one of two numbers: write it like 1299.00"
        elif number is not None and values[-1] is None:
            reasons[row] = f"price={text} is not a number like 14.40"
    return pa.chunked_array([pa.array(values, pa.float64())]), reasons


def parse_value(value: Any, column: pa.Field) -> Any:
    """Convert a text, a number or a truth value to a value of a catalogue's column; None stays None.

    Prices may be texts such as `19,90` and `€ 19.90`.

    Raises:
        UserError: if the value does not fit the column.
    """
    if value is None or value == "":
        return None
    is_bool = isinstance(value, bool)
    try:
        if not isinstance(value, str | int | float) or (is_bool and not pa.types.is_boolean(column.type)):
            raise ValueError("give a text or a number")
        if isinstance(value, str) and len(value.encode()) > MAX_TEXT_BYTES:
            raise ValueError(f"{MAX_TEXT_BYTES:,} bytes are the most")
        if column.name == "price" and isinstance(value, str):
            prices, reasons = _parse_prices(pa.chunked_array([[value]]))
            if reasons:
                raise ValueError("give a number like 14.40")
            value = prices[0].as_py()
        value = pa.array([value]).cast(column.type)[0].as_py()
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("give a finite number")
    except (pa.ArrowException, ValueError, OverflowError, ArithmeticError) as error:
        reason = str(error) if type(error) is ValueError else f"the column holds {describe_type(column.type)}"
        raise UserError(f"{column.name}={value!s:.100} cannot be used: {reason}.") from error
    return value


def _strip_currency(text: str) -> str:
    """Remove a currency's sign or code of three capitals from the ends of a text, and spaces between digits."""
    kept = "".join(character for character in text if unicodedata.category(character) != "Sc")
    return re.sub(r"^\s*[A-Z]{3}\b|\b[A-Z]{3}\s*$", "", kept).strip().translate(_GROUPING)


def _decimal_mark(numbers: Sequence[str]) -> str:
    """Return which of `.` and `,` begins the decimals in a column of numbers; `.,` if that cannot be told."""
    if not any("," in number for number in numbers):
        return "."
    marks = [
        mark
        for mark, other in (".,", ",.")
        if any(re.search(rf"\{mark}\d{{1,2}}$|\{other}\d{{3}}\{mark}\d+$", number) for number in numbers)
    ]
    return marks[0] if len(marks) == 1 else ".,"


def _price_values(number: str, marks: str) -> set[float]:
    """Return the values of a number for each of these decimal marks that is possible."""
    values = set()
    for mark in marks:
        other = "," if mark == "." else "."
        plain = rf"[-+]?(\d+|\d{{1,3}}(\{other}\d{{3}})+)?(\{mark}\d*)?([eE][-+]?\d{{1,2}})?"
        if re.search(r"\d", number) and re.fullmatch(plain, number):
            values.add(float(number.replace(other, "").replace(mark, ".")))
    return values


def _read_parquet(path: Path) -> pa.Table:
    """Read a Parquet file in batches, with texts decoded; a repeated text takes no memory before it is counted."""
    with pyarrow.parquet.ParquetFile(path) as file:
        if file.metadata.num_rows > _MAX_ROWS:
            raise UserError(f"products={path} has {file.metadata.num_rows:,} rows: {_MAX_ROWS:,} are the most.")
        schema = file.schema_arrow
        _check_number_of_columns(len(schema), path)
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


def _check_number_of_columns(count: int, path: Path) -> None:
    if count > _MAX_COLUMNS:
        raise UserError(f"products={path} has {count:,} columns: {_MAX_COLUMNS:,} are the most.")


def _too_large(path: Path) -> UserError:
    return UserError(
        f"products={path} holds more than {_MAX_BYTES / 1e6:g} MB: shorten its columns, or index it in several parts."
    )


def _read_csv(path: Path, known_types: Mapping[str, pa.DataType]) -> tuple[pa.Table, list[OmittedRow]]:
    """Read a CSV with the known types of its columns where the values fit, and inferred types elsewhere.

    Returns:
        The table, with prices as text, and the rows that have too few or too many columns.
    """
    delimiter = _delimiter(path)
    table, omitted = _read_delimited(path, known_types, delimiter, decimal_point=".")
    if "price" in table.column_names:
        prices = [_strip_currency(text) for text in table["price"].to_pylist() if text]
        if _decimal_mark(prices) == ",":
            return _read_delimited(path, known_types, delimiter, decimal_point=",")
    return table, omitted


def _read_delimited(
    path: Path, known_types: Mapping[str, pa.DataType], delimiter: str, *, decimal_point: str
) -> tuple[pa.Table, list[OmittedRow]]:
    is_type = pa.types
    predicates = (is_type.is_string, is_type.is_boolean, is_type.is_integer, is_type.is_floating)
    expected = {name: kind for name, kind in known_types.items() if any(test(kind) for test in predicates)}
    omitted: list[OmittedRow] = []

    def leave_out(row: pyarrow.csv.InvalidRow) -> str:
        # Arrow counts rows from 1, with the header.
        reason = f"it has {pluralize(row.actual_columns, 'column')} instead of {row.expected_columns}"
        omitted.append(OmittedRow(row.number - 1, "", reason))
        return "skip"

    parsing = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=leave_out)
    # Rows have no numbers when several threads read them.
    reading = pyarrow.csv.ReadOptions(use_threads=False)
    size = _check_csv(path)
    headings = _read_headings(path, delimiter)
    _check_number_of_columns(len(headings), path)
    while True:
        omitted.clear()
        types = expected | _COLUMN_TYPES | {"price": pa.string()}
        converting = pyarrow.csv.ConvertOptions(column_types=types, decimal_point=decimal_point)
        try:
            # Arrow would decompress a file that it opens by its name.
            with path.open("rb") as content:
                table = pyarrow.csv.read_csv(
                    content, read_options=reading, parse_options=parsing, convert_options=converting
                )
            return table, omitted
        except pa.ArrowInvalid as error:
            place = re.match(r"In CSV column #(\d+)", str(error))
            name = dict(enumerate(headings)).get(int(place[1])) if place else None
            # A column whose values do not fit its known type gets an inferred type.
            if expected.pop(name or "", None) is None:
                if not name or name in types or reading.block_size == size:
                    raise
                # Arrow inferred a wrong type from the first block of rows: let it infer the type from all rows.
                reading.block_size = size


def _check_csv(path: Path) -> int:
    """Return the size of a file in bytes. Raises UserError if it is compressed or too large."""
    with path.open("rb") as content:
        if content.read(max(map(len, _ARCHIVES))).startswith(_ARCHIVES):
            raise UserError(f"products={path} is compressed: unpack it.")
        if (size := content.seek(0, os.SEEK_END)) > _MAX_BYTES:
            raise _too_large(path)
    return size


def _read_headings(path: Path, delimiter: str) -> list[str]:
    """Return the headings of a CSV. Raises ValueError if they cannot be read."""
    try:
        # Spreadsheets write a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file, delimiter=delimiter), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _delimiter(path: Path) -> str:
    """Return the character that separates the columns of a CSV: the comma if its header has one."""
    with path.open("rb") as content:
        header = content.readline(_MAX_HEADER_BYTES).decode(errors="replace")
    return next((delimiter for delimiter in _DELIMITERS if delimiter in header), _DELIMITERS[0])


def _encoding_error(path: Path) -> str | None:
    """Say that a file is not UTF-8, if so."""
    try:
        with path.open("rb") as file:
            position = 0
            for line in file:
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    return f"{path} is not UTF-8 (byte {position + error.start})"
                position += len(line)
    except OSError:
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


def _check_columns(table: pa.Table, path: Path) -> None:
    """Check that there are products with a column of ids, and that no column has a reserved name."""
    if "id" not in table.column_names:
        raise UserError(f"{path} has no column id, but {', '.join(table.column_names)}: each product needs an id.")
    if not table.num_rows:
        raise UserError(f"{path} holds no product.")
    if reserved := set(table.column_names) & set(RESERVED_COLUMNS):
        raise UserError(f"{path} has a column {min(reserved)}, which the catalogue fills in itself: rename it.")
