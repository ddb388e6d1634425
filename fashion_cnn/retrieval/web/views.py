"""Products and samples as a page shows them."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from hydra.utils import get_class
from PIL import Image
from torch import Tensor

from fashion_cnn.data import TorchvisionDataModule
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import instantiate_data
from fashion_cnn.retrieval.products import encode_png, to_pil_image
from fashion_cnn.retrieval.searcher import Hit
from fashion_cnn.retrieval.web.errors import Refused
from fashion_cnn.retrieval.web.query import Asked, carried
from fashion_cnn.runs import Run

# Enlarged smoothly, a picture of so few pixels is a blur.
_FEW_PIXELS = 64
_MOST_SAMPLES = 10


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
    return shown(encode_png(to_pil_image(picture)))


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


@dataclass(frozen=True)
class Sample:
    name: str
    picture: Shown
    link: str


def samples_of_test_set(run: Run, root: str | None) -> tuple[Sample, ...]:
    """The first test image of each class, which no catalogue of training images holds; none where the data is not here.

    root: where it lies, if not where the run had it.
    """
    data = instantiate_data(run, root)
    if isinstance(data, TorchvisionDataModule) and not _is_here(data, run):
        return ()
    try:
        images, targets = data.load(train=False)
        members = data.test_order(targets)
    except (UserError, RuntimeError, OSError, ValueError):
        return ()
    found = []
    for label, name in enumerate(data.all_class_names[:_MOST_SAMPLES]):
        rows = members[targets[members] == label]
        if len(rows):
            picture = images[rows[0]]
            try:
                found.append(Sample(name, shown_tensor(picture), Asked(picture=[carried(picture)]).link()))
            except Refused:
                return ()
    return tuple(found)


def _is_here(data: TorchvisionDataModule, run: Run) -> bool:
    """Whether its test set would be read without a download, which nobody asked for who starts a server."""
    settings = run.config().data
    try:
        get_class(settings.dataset)(data.root, download=False, **(settings.test or {"train": False}))
    except Exception:  # whatever keeps it from being read
        return False
    return True
