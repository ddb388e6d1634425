"""Products, pictures and numbers as pages show them, and sample pictures to search with."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from fashion_cnn.errors import UserError
from fashion_cnn.retrieval.products import encode_png, thumbnail_size, to_pil_image
from fashion_cnn.retrieval.web.errors import HTTPError
from fashion_cnn.retrieval.web.query import SearchQuery, encode_picture
from fashion_cnn.runs import Run

# Pictures with no side longer than this are enlarged without smoothing, which would blur them.
_PIXELATED_SIDE = 64
# A grey square in place of a thumbnail that cannot be read.
_PLACEHOLDER = encode_png(to_pil_image(np.full((1, 1, 1), 128, np.uint8)))
MAX_SAMPLES = 10


@dataclass(frozen=True)
class InlineImage:
    """A picture inside the page, which therefore needs one request and shows one version of the catalogue.

    Attributes:
        source: a `data:` URL.
        pixelated: whether to enlarge it without smoothing.
    """

    source: str
    pixelated: bool


def inline_image(encoded: bytes) -> InlineImage:
    """Turn an encoded image into a `data:` URL; one that cannot be read becomes a grey square."""
    size = thumbnail_size(encoded)
    if size is None:
        encoded, size = _PLACEHOLDER, (1, 1)
    source = f"data:{media_type(encoded)};base64,{base64.b64encode(encoded).decode()}"
    return InlineImage(source, pixelated=max(size) <= _PIXELATED_SIDE)


def media_type(encoded: bytes) -> str:
    """Return the media type of a thumbnail: PNG, JPEG or WebP."""
    signatures = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}
    return next((kind for signature, kind in signatures.items() if encoded.startswith(signature)), "image/webp")


def format_price(value: float | None, currency: str = "") -> str:
    """Format a price with two decimals and the currency; None becomes an empty string."""
    # A no-break space keeps both in one line.
    return "" if value is None else f"{value:,.2f}\N{NO-BREAK SPACE}{currency}".rstrip()


def format_attribute(value: Any) -> str:
    """Format the value of a product's column for people."""
    if value is None:
        return "not specified"
    if not isinstance(value, float):
        return str(value)
    # Large whole numbers are often codes such as barcodes: no separators.
    return str(int(value)) if value.is_integer() else f"{value:,.10g}"


@dataclass(frozen=True)
class Sample:
    """An example search on the start page.

    Attributes:
        name: the class or category.
        picture: an encoded image.
        link: address of the search.
    """

    name: str
    picture: bytes
    link: str


def samples_of_test_set(run: Run, root: str | None) -> tuple[Sample, ...]:
    """Return the first test image of each class; a catalogue of the training images does not contain them.

    Args:
        run: the training run.
        root: folder of its data set; None for the one that the run read.

    Returns:
        At most 10 samples; none if the data set is not on this machine or its images are too large for a link.
    """
    # Only here: a server without torch has no test set.
    from fashion_cnn.data import TorchvisionDataModule
    from fashion_cnn.inference.network import instantiate_data

    data = instantiate_data(run, root)
    if isinstance(data, TorchvisionDataModule):
        data.download = False  # a server starts none
    try:
        images, targets = data.read(train=False)
        members = data.test_positions(targets)
    except (UserError, RuntimeError, OSError, ValueError, ImportError):
        return ()
    samples = []
    for label, name in enumerate(data.all_class_names[:MAX_SAMPLES]):
        rows = members[targets[members] == label]
        if len(rows):
            picture = images[rows[0]]
            try:
                link = SearchQuery(picture=[encode_picture(picture)]).link()
            except HTTPError:
                return ()
            samples.append(Sample(name, encode_png(to_pil_image(picture)), link))
    return tuple(samples)
