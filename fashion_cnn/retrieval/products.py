"""Products on their way into a catalogue: a table of what a shop knows of them, and their pictures."""

import io
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
from PIL import Image
from torch import Tensor

from fashion_cnn.pictures import Preparation, UnreadablePictureError

# Of the longer side of a thumbnail, in pixels.
THUMBNAIL_SIDE = 192


@dataclass(frozen=True)
class Picture:
    """A product's picture as the network takes it, `(C, H, W)` uint8, and as people see it, an encoded image."""

    prepared: Tensor
    thumbnail: bytes


class Pictures(Protocol):
    """The pictures of products, by the numbers of their rows."""

    def read(
        self, rows: Iterable[int], preparation: Preparation
    ) -> Generator[tuple[int, Picture | UnreadablePictureError]]:
        """Each row with its picture, or with the reason why it has none, in the given order."""
        ...


@dataclass(frozen=True)
class Products:
    """table: one row a product, with the columns id, title, category (null where the shop says none), price (likewise)
    and the shop's own. keys: of each row; another one where its picture or anything in the row is another. note: what
    people are to know of them, a sentence.
    """

    table: pa.Table
    keys: tuple[str, ...]
    pictures: Pictures
    note: str = ""

    @property
    def ids(self) -> list[str]:
        ids: list[str] = self.table["id"].to_pylist()
        return ids


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file: exact, for pictures of few pixels."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail(picture: Image.Image) -> bytes:
    """The bytes of a JPEG file, of a picture made small; of a WebP file where some of it is transparent."""
    small = picture.copy()
    # Halved first where that leaves enough: less than half the time.
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=1.0)
    buffer = io.BytesIO()
    if small.mode in ("L", "RGB"):
        # Half as large again as WebP, and packed in a fifteenth of the time.
        small.save(buffer, "JPEG", quality=85)
    else:
        small.save(buffer, "WEBP", quality=80, method=2)
    return buffer.getvalue()
