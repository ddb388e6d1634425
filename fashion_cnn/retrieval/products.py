"""Products on their way into a catalogue, and a labelled data set as the products of a shop."""

import hashlib
import io
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
from PIL import Image
from torch import Tensor

from fashion_cnn.data import ImageDataModule
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
    and the shop's own. content_keys: of each row; another one where its picture or anything in the row is another.
    note: what people are to know of them, a sentence.
    """

    table: pa.Table
    content_keys: tuple[str, ...]
    pictures: Pictures
    note: str = ""

    @property
    def ids(self) -> list[str]:
        ids: list[str] = self.table["id"].to_pylist()
        return ids


def encode_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file: exact, for pictures of few pixels."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def encode_thumbnail(picture: Image.Image) -> bytes:
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


def products_from_data_set(data: ImageDataModule, *, train: bool = True) -> Products:
    """All images that a run's data set has for training (validation included), or for testing, one product each.

    The category is the label and the tone is measured. The price, which no such data set knows, is made up.
    """
    data.prepare_data()
    images, targets = data.labelled_images(train=train)
    split = "train" if train else "test"
    names = list(data.all_class_names)
    categories = [names[target] for target in targets.tolist()]
    tones = _tones(images, negative=data.cut_out)
    ids = [f"{split}-{number:05}" for number in range(len(images))]
    titles = [f"{tone} {category}".capitalize() for tone, category in zip(tones, categories, strict=True)]
    # The same each time, and dearer the later the class comes.
    prices = [5 + 8.0 * (target % 10) + number * 7919 % 2300 / 100 for number, target in enumerate(targets.tolist())]
    table = pa.table(
        {
            "id": ids,
            "title": titles,
            "category": categories,
            "price": [round(price, 2) for price in prices],
            "tone": tones,
        }
    )
    keys = (hashlib.sha1(image.tobytes()).hexdigest() for image in images.numpy())
    return Products(
        table,
        tuple(f"{key} {title}" for key, title in zip(keys, titles, strict=True)),
        _ImagesInMemory(images, negative=data.cut_out),
        note="Its prices are made up.",
    )


def to_pil_image(image: Tensor) -> Image.Image:
    """An image `(C, H, W)` uint8 as Pillow has it."""
    return Image.fromarray(image[0].numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).numpy())


class _ImagesInMemory:
    def __init__(self, images: Tensor, *, negative: bool) -> None:
        self._images = images
        self._negative = negative

    def read(
        self, rows: Iterable[int], preparation: Preparation
    ) -> Generator[tuple[int, Picture | UnreadablePictureError]]:
        for row in rows:
            # What the network was trained on needs no preparation; people see it as it was photographed.
            image = self._images[row]
            yield row, Picture(image, encode_png(to_pil_image(255 - image if self._negative else image)))


def _tones(images: Tensor, *, negative: bool) -> list[str]:
    """How light the item is, in thirds; of a negative, as Fashion-MNIST's images are, how it was photographed."""
    names = ("light", "grey", "dark") if negative else ("dark", "grey", "light")
    tones = []
    # A part at a time, since a copy of all may not fit into memory.
    for part in images.split(1000):
        item = part > 16
        mean = (part * item).flatten(1).sum(1) / item.flatten(1).sum(1).clamp(min=1)
        tones += [names[int(value > 140) + int(value > 181)] for value in mean.tolist()]
    return tones
