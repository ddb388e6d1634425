"""Products as a page shows them."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from fashion_cnn.retrieval.data_set_products import as_picture
from fashion_cnn.retrieval.products import png
from fashion_cnn.retrieval.searcher import Hit
from fashion_cnn.retrieval.web.asked import Asked

# Enlarged smoothly, a picture of so few pixels is a blur.
_FEW_PIXELS = 64


@dataclass(frozen=True)
class Shown:
    """A picture in the page itself: the page and its pictures are of one version, and need one request."""

    source: str
    pixelated: bool


@dataclass(frozen=True)
class Card:
    """A product of a grid, with the links that go on from it."""

    hit: Hit
    picture: Shown
    product: str
    like: str
    unlike: str


def shown(encoded: bytes) -> Shown:
    """An encoded image."""
    size = Image.open(io.BytesIO(encoded)).size
    return Shown(f"data:{kind(encoded)};base64,{base64.b64encode(encoded).decode()}", max(size) <= _FEW_PIXELS)


def shown_tensor(picture: Tensor) -> Shown:
    """A picture `(C, H, W)` uint8."""
    return shown(png(as_picture(picture)))


def kind(encoded: bytes) -> str:
    """The media type of a thumbnail."""
    kinds = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}
    return next((kind for head, kind in kinds.items() if encoded.startswith(head)), "image/webp")


def card(hit: Hit, asked: Asked) -> Card:
    """asked: the search that the product's links go on with."""
    return Card(
        hit=hit,
        picture=shown(hit.thumbnail),
        product=asked.link("/product", id=hit.id),
        like=asked.marked(like=hit.id).link(),
        unlike=asked.marked(unlike=hit.id).link(),
    )


def price(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def plainly(value: Any) -> str:
    """An attribute as people read it."""
    if value is None:
        return "not said"
    if not isinstance(value, float):
        return str(value)
    # Whole ones are numbers such as barcodes as often as amounts.
    return str(int(value)) if value.is_integer() else f"{value:,.10g}"
