"""Products before they enter a catalogue: their columns, their pictures, and a labelled data set as products."""

import hashlib
import io
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike
from PIL import Image

from fashion_cnn.pictures import THUMBNAIL_SIDE, Preparation, UnreadablePictureError, decode, open_picture

if TYPE_CHECKING:
    from torch import Tensor

    from fashion_cnn.data import ImageDataModule

# Columns of every product; the custom columns of a shop follow them.
PRODUCT_COLUMNS = {"id": pa.string(), "title": pa.string(), "category": pa.string(), "price": pa.float64()}
# Columns that indexing and searching add; no custom column may have such a name.
RESERVED_COLUMNS = ("key", "seen_as", "confidence", "thumbnail", "vector", "similarity", "searchable_text")
# Column that words are searched in: the title, or another one of the joined texts of several columns.
TEXT_COLUMNS = ("title",)
JOINED_TEXT = "searchable_text"
# Maximum size of a thumbnail, since a catalogue may come from someone else. Thumbnails of a data set keep its size.
_MAX_THUMBNAIL_PIXELS, _MAX_THUMBNAIL_BYTES = 4_000_000, 4_000_000
# Maximum size of a text of a product: tables and pages show it whole.
MAX_TEXT_BYTES = 100_000
_THUMBNAIL_FORMATS = ("PNG", "JPEG", "WEBP")


def catalogue_schema(
    dimensions: int, custom: Sequence[pa.Field], text_columns: Sequence[str] = TEXT_COLUMNS
) -> pa.Schema:
    """Return the schema of a catalogue's table.

    Args:
        dimensions: length of a search vector.
        custom: the custom columns of the shop.
        text_columns: the columns that words are searched in.
    """
    return pa.schema(
        [
            pa.field("id", PRODUCT_COLUMNS["id"], nullable=False),
            pa.field("key", pa.string()),
            *(pa.field(name, kind) for name, kind in PRODUCT_COLUMNS.items() if name != "id"),
            pa.field("seen_as", pa.string()),
            pa.field("confidence", pa.float32()),
            pa.field("thumbnail", pa.binary()),
            pa.field("vector", pa.list_(pa.float32(), dimensions)),
            *([] if tuple(text_columns) == TEXT_COLUMNS else [pa.field(JOINED_TEXT, pa.string())]),
            *custom,
        ]
    )


def add_joined_text(products: pa.Table, text_columns: Sequence[str]) -> pa.Table:
    """Add or replace the column of the joined texts of several columns; nothing is added for the title alone."""
    if tuple(text_columns) == TEXT_COLUMNS:
        return products
    texts = [products[name].cast(pa.string()) for name in text_columns]
    joined = pc.binary_join_element_wise(*texts, " ", null_handling="skip")
    others = products.drop_columns([JOINED_TEXT]) if JOINED_TEXT in products.column_names else products
    return others.append_column(JOINED_TEXT, joined)


def text_column_of(schema: pa.Schema) -> str:
    """Return the column of a catalogue that words are searched in."""
    return JOINED_TEXT if JOINED_TEXT in schema.names else "title"


def custom_columns(schema: pa.Schema) -> list[pa.Field]:
    """Return the columns that only this shop has."""
    return [field for field in schema if field.name not in (*PRODUCT_COLUMNS, *RESERVED_COLUMNS)]


def describe_type(kind: pa.DataType) -> str:
    """Name a column type in plain words for messages."""
    if pa.types.is_integer(kind):
        return "integers"
    if pa.types.is_floating(kind):
        return "decimal numbers"
    return "text" if pa.types.is_string(kind) else str(kind)


@dataclass(frozen=True)
class Picture:
    """The picture of a product.

    Attributes:
        prepared: input of the network, `(C, H, W)` uint8.
        thumbnail: encoded image for people.
    """

    prepared: ArrayLike
    thumbnail: bytes


# Picture of each row, or the error that makes it unreadable, in the order of the rows.
Pictures = Generator[tuple[int, Picture | UnreadablePictureError]]


@dataclass(frozen=True)
class OmittedRow:
    """A row of a product table that cannot be used.

    Attributes:
        number: its number, from 1 without the header.
        id: id of its product; empty if it has none.
        reason: why, as part of a sentence.
    """

    number: int
    id: str
    reason: str

    def __str__(self) -> str:
        product = f" (id {self.id})" if self.id else ""
        return f"row {self.number}{product}: {self.reason}"


@dataclass(frozen=True)
class Products:
    """Products to index.

    Attributes:
        table: one row per product with `PRODUCT_COLUMNS` (category and price may be null) and the custom columns.
        content_keys: one fingerprint per row, which changes when the picture or a column of the row changes.
        read_pictures: reads the pictures of these rows and prepares them for a network.
        note: sentence about the products that users of the catalogue should know.
        omitted: rows of a product table that are left out.
    """

    table: pa.Table
    content_keys: tuple[str, ...]
    read_pictures: Callable[[Iterable[int], Preparation], Pictures]
    note: str = ""
    omitted: tuple[OmittedRow, ...] = ()

    @property
    def ids(self) -> list[str]:
        """Return the id of each row."""
        ids: list[str] = self.table["id"].to_pylist()
        return ids


def encode_png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG, which is lossless and small for few pixels."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def longest_text(column: pa.ChunkedArray) -> tuple[int, int]:
    """Return row and number of bytes of the longest text of a column; `(0, 0)` for a column of other values."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return 0, 0
    lengths = pc.fill_null(pc.binary_length(column), 0)
    longest = pc.max(lengths).as_py()
    return (pc.index(lengths, longest).as_py(), longest) if longest else (0, 0)


def thumbnail_size(encoded: bytes) -> tuple[int, int] | None:
    """Return width and height of a thumbnail from its header; None if it is damaged, too large or of another kind."""
    if len(encoded) > _MAX_THUMBNAIL_BYTES:
        return None
    try:
        with open_picture(encoded) as image:
            accepted = image.format in _THUMBNAIL_FORMATS and image.width * image.height <= _MAX_THUMBNAIL_PIXELS
            return image.size if accepted else None
    except Exception:  # Pillow raises many kinds of errors on damaged files.
        return None


def decode_thumbnail(encoded: bytes) -> Image.Image | None:
    """Decode a thumbnail, reduced if it is large; None if it is damaged, too large or of another kind."""
    try:
        return decode(encoded, min_pixels=THUMBNAIL_SIDE**2) if thumbnail_size(encoded) else None
    except UnreadablePictureError:
        return None


def to_pil_image(image: ArrayLike) -> Image.Image:
    """Convert an image `(C, H, W)` uint8 to a Pillow image."""
    pixels = np.asarray(image)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def products_from_data_set(data: "ImageDataModule", *, train: bool = True) -> Products:
    """Turn the images of a data set into products.

    The category is the label, and the title is made of the label and the measured tone. Prices are made up.

    Args:
        data: the data set.
        train: take the training images, including those for validation; otherwise the test images.
    """
    data.prepare_data()
    images, targets = data.labelled_images(train=train)
    split = "train" if train else "test"
    names = list(data.all_class_names)
    labels = targets.tolist()
    categories = [names[label] for label in labels]
    tones = _tones(images, negative=data.cut_out)
    titles = [f"{tone} {category}".capitalize() for tone, category in zip(tones, categories, strict=True)]
    # Reproducible prices that rise with the label.
    prices = [round(5 + 8.0 * (label % 10) + number * 7919 % 2300 / 100, 2) for number, label in enumerate(labels)]
    ids = [f"{split}-{number:05}" for number in range(len(images))]
    table = pa.table({"id": ids, "title": titles, "category": categories, "price": prices, "tone": tones})
    digests = (hashlib.sha1(image.tobytes()).hexdigest() for image in images.numpy())
    return Products(
        table,
        tuple(f"{digest} {title}" for digest, title in zip(digests, titles, strict=True)),
        partial(_pictures_from_tensor, images, data.cut_out),
        note="Its prices are made up.",
    )


def _pictures_from_tensor(images: "Tensor", negative: bool, rows: Iterable[int], preparation: Preparation) -> Pictures:
    """Yield pictures of images `(N, C, H, W)` uint8, which need no preparation; thumbnails show negatives inverted."""
    for row in rows:
        image = images[row]
        yield row, Picture(image, encode_png(to_pil_image(255 - image if negative else image)))


def _tones(images: "Tensor", *, negative: bool) -> list[str]:
    """Return the brightness class of each item; `negative` images, as in Fashion-MNIST, are inverted photographs."""
    names = ("light", "grey", "dark") if negative else ("dark", "grey", "light")
    tones = []
    # In chunks, since a copy of all images may exceed the memory.
    for chunk in images.split(1000):
        item = chunk > 16
        mean = (chunk * item).flatten(1).sum(1) / item.flatten(1).sum(1).clamp(min=1)
        tones += [names[int(value > 140) + int(value > 181)] for value in mean.tolist()]
    return tones
