"""A shop's own pictures as products: a folder, with or without a table that says what they are."""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from fashion_cnn.errors import UserError
from fashion_cnn.pictures import PREPARATION_VERSION, Preparation, UnreadablePictureError, decode, find_pictures
from fashion_cnn.pictures.files import is_picture_file, read_ahead
from fashion_cnn.retrieval.catalogue import PRODUCT_COLUMNS, RESERVED_COLUMNS
from fashion_cnn.retrieval.products import THUMBNAIL_SIDE, Picture, Products, encode_thumbnail

Progress = Callable[[int, int], None]
_TYPES = {"id": pa.string(), "title": pa.string(), "category": pa.string(), "image": pa.string(), "price": pa.float64()}

# LanceDB's own columns begin so.
_HIDDEN = ("_row", "_score", "_distance")


def products_from_files(
    images: str | Sequence[str] | None,
    table: str | None,
    progress: Progress,
    known: Mapping[str, pa.DataType] | None = None,
) -> Products:
    """The products of a folder, glob or list of pictures, of a CSV or Parquet table, or of both.

    images: without a table each picture is a product: its id is its path below the folder, its title its name, and its
        category the folder that it lies in. With a table, where the table's pictures lie.
    table: has a column `id` and, as it may be, title, category, price, image (a file below `images`, or else beside the
        table; without it the file is named as the id) and columns of the shop's own.
    known: the types of such columns in the catalogue, which are kept where the values can be read so.
    Raises UserError where there is no product, or a table that cannot be used.
    """
    if table is None:
        described, files = _from_pictures([] if images is None else images)
    else:
        described, files = _from_table(Path(table).expanduser(), images, known or {})
    rows = described.to_pylist()
    keys = []
    for number, (_, digest) in enumerate(read_ahead(files, _digest), start=1):
        keys.append(_key(rows[number - 1], digest))
        progress(number, len(files))
    return Products(described, tuple(keys), _Files(files))


class _Files:
    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def read(
        self, rows: Iterable[int], preparation: Preparation
    ) -> Generator[tuple[int, Picture | UnreadablePictureError]]:
        enough = max(preparation.min_pixels, THUMBNAIL_SIDE**2)

        def read(row: int) -> Picture | UnreadablePictureError:
            try:
                picture = decode(self._files[row], min_pixels=enough)
                return Picture(preparation(picture), encode_thumbnail(picture))
            except UnreadablePictureError as error:
                return UnreadablePictureError(f"{self._files[row]} {error}")

        return read_ahead(rows, read)


def _from_pictures(images: str | Sequence[str]) -> tuple[pa.Table, list[Path]]:
    files = list(find_pictures(images).paths)
    folder = Path(images).expanduser() if isinstance(images, str) else None
    if folder and folder.is_file():
        folder = folder.parent
    below = [file.relative_to(folder) if folder and file.is_relative_to(folder) else file for file in files]
    # A folder named itself holds products; a folder in it is a kind of product.
    categories = [path.parent.name or None if len(path.parts) > 1 else None for path in below]
    titles = [" ".join(path.stem.replace("_", " ").replace("-", " ").split()) or path.stem for path in below]
    ids = [path.as_posix() for path in below]
    for one in ids:
        # Names of other systems, unpacked here, may be no text.
        if not _is_text(one):
            raise UserError(f"The name of {one!a} is not in UTF-8, so that it is no id: rename the file.")
    columns = {"id": ids, "title": titles, "category": categories, "price": [None] * len(ids)}
    schema = pa.schema([(name, _TYPES[name]) for name in columns])
    return pa.table(columns, schema=schema), files


def _from_table(
    path: Path, images: str | Sequence[str] | None, known: Mapping[str, pa.DataType]
) -> tuple[pa.Table, list[Path]]:
    table = _read_table(path, known)
    _check(table, path)
    folder = path.parent
    if isinstance(images, str) and Path(images).expanduser().is_dir():
        folder = Path(images).expanduser()
    elif images is not None:
        raise UserError(f"images={images} is no folder: beside products= say the folder of its pictures.")
    ids = table["id"].to_pylist()
    if "image" in table.column_names:
        files = [folder / (name or "") for name in table["image"].to_pylist()]
        table = table.drop_columns(["image"])
    else:
        pictures = sorted(file for file in folder.iterdir() if file.is_file() and is_picture_file(file))
        named = {file.stem: file for file in pictures} | {file.name: file for file in pictures}
        files = [named.get(one, folder / one) for one in ids]
        if not set(ids) & named.keys():
            raise UserError(
                f"{path} has no column image, and no picture in {folder} is called as an id, such as {ids[0]}.jpg: "
                f"name each product's file in a column image. Its columns are {', '.join(table.column_names)}."
            )
    for name in PRODUCT_COLUMNS:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(ids), _TYPES[name]))
    table = table.set_column(table.column_names.index("title"), "title", pc.coalesce(table["title"], table["id"]))
    others = [name for name in table.column_names if name not in PRODUCT_COLUMNS]
    return table.select([*PRODUCT_COLUMNS, *others]).combine_chunks(), files


def _read_table(path: Path, known: Mapping[str, pa.DataType]) -> pa.Table:
    if not path.is_file():
        raise UserError(f"products={path} does not exist: give a CSV or Parquet file.")
    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    try:
        table = _without_row_numbers(pyarrow.parquet.read_table(path) if is_parquet else _read_csv(path, known))
        _check_headings(table.column_names, path)
        kinds = [_TYPES.get(name, _as_known(table[name], known.get(name))) for name in table.column_names]
        table = table.cast(pa.schema(zip(table.column_names, kinds, strict=True)))
        # An empty text says nothing.
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
        reason = None if is_parquet else _what_is_wrong(path)
        reason = reason or f"products={path} cannot be read ({str(error).splitlines()[0].rstrip('.')})"
        raise UserError(f"{reason}: give a CSV in UTF-8 with a heading and commas, or Parquet.") from error


def _without_row_numbers(table: pa.Table) -> pa.Table:
    """Without the unnamed columns that pandas numbers the rows in, and those that are empty."""
    unnamed = [place for place, name in enumerate(table.column_names) if not name.strip()]
    dropped = {place for place in unnamed if _numbers_rows(table.column(place))}
    return table.select([place for place in range(table.num_columns) if place not in dropped])


def _numbers_rows(column: pa.ChunkedArray) -> bool:
    if column.null_count == len(column):
        return True
    return pa.types.is_integer(column.type) and pc.count_distinct(column, mode="all").as_py() == len(column)


def _check_headings(headings: Sequence[str], path: Path) -> None:
    """Raises UserError for a heading that LanceDB does not take as a column's name."""
    if twice := [name for name, count in Counter(headings).items() if name.strip() and count > 1]:
        raise UserError(f"{path} has {len(twice)} headings more than once, such as {twice[0]}: name each once.")
    for place, name in enumerate(headings, start=1):
        if not name.strip():
            raise UserError(f"{path}: column {place} has no heading: give it one, or leave the column out.")
        if set(name) & set(".`"):
            raise UserError(f"{path} has a column {name}: give it a name without . and `.")
        if name == "*" or name.startswith(_HIDDEN):
            raise UserError(f"{path} has a column {name}, a name that LanceDB has for itself: give it another one.")


def _read_csv(path: Path, known: Mapping[str, pa.DataType]) -> pa.Table:
    """A column is of its type in the catalogue, if it can be; one that begins with numbers and goes on with words holds
    texts.
    """
    expected = {name: kind for name, kind in known.items() if _is_simple(kind)}
    texts: dict[str, pa.DataType] = {}
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    while True:
        types = expected | texts | _TYPES
        try:
            converting = pyarrow.csv.ConvertOptions(column_types=types)
            return pyarrow.csv.read_csv(path, parse_options=parsing, convert_options=converting)
        except pa.ArrowInvalid as error:
            place = re.match(r"In CSV column #(\d+)", str(error))
            with path.open(newline="", encoding="utf-8-sig") as file:
                name = next(csv.reader(file))[int(place[1])] if place else ""
            if expected.pop(name, None) is None:
                if not name or name in types:
                    raise
                texts[name] = pa.string()


def _what_is_wrong(path: Path) -> str | None:
    """In a person's words, where a CSV has what spreadsheets are likely to have written."""
    try:
        # Spreadsheets put a mark before the text.
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), start=1):
                if not _is_number(row.get("price") or "0"):
                    return f"{path}, row {number} (id {row.get('id')}): price={row['price']} is no number such as 14.40"
    except UnicodeDecodeError as error:
        return f"{path} is no UTF-8 (byte {error.start})"
    except (csv.Error, OSError):
        pass
    return None


def _is_number(typed: str) -> bool:
    try:
        float(typed)
    except ValueError:
        return False
    return True


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that means the same without being stored in a particular way, as pandas and polars do with texts."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    is_text = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    # A column in which nothing is said yet will hold texts as likely as anything.
    return pa.string() if is_text or pa.types.is_null(kind) else kind


def _as_known(column: pa.ChunkedArray, known: pa.DataType | None) -> pa.DataType:
    """The type of a column in the catalogue, if it can be brought to that, or else its own."""
    kind = _plain(column.type)
    if known is None:
        return kind
    widens = pa.types.is_integer(kind) and pa.types.is_floating(known)
    return known if widens or column.null_count == len(column) else kind


def _is_simple(kind: pa.DataType) -> bool:
    of = pa.types
    return of.is_string(kind) or of.is_boolean(kind) or of.is_integer(kind) or of.is_floating(kind)


def _check(table: pa.Table, path: Path) -> None:
    if "id" not in table.column_names:
        semicolons = " Its columns are separated by ;: save it with commas." if ";" in table.column_names[0] else ""
        raise UserError(
            f"{path} has no column id, but {', '.join(table.column_names)}: each product needs an id.{semicolons}"
        )
    if not table.num_rows:
        raise UserError(f"{path} holds no product.")
    if taken := set(table.column_names) & set(RESERVED_COLUMNS):
        raise UserError(f"{path} has a column {min(taken)}, which the catalogue fills in itself: give it another name.")
    ids = table["id"].to_pylist()
    if missing := [number for number, one in enumerate(ids, start=1) if not one]:
        raise UserError(f"{path}: {len(missing)} rows have no id, the first is row {missing[0]}.")
    if twice := [one for one, count in Counter(ids).items() if count > 1]:
        raise UserError(f"{path}: {len(twice)} ids come up more than once, such as {twice[0]}.")


def _digest(file: Path) -> str:
    """The SHA-256 of a file's content; of one that cannot be read, nothing."""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return ""


def _key(row: dict[str, Any], digest: str) -> str:
    """What changes where a product must be looked at again: its row, its picture, or how pictures are prepared."""
    return hashlib.sha256(json.dumps([row, digest, PREPARATION_VERSION], default=str).encode()).hexdigest()[:32]
