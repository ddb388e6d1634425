"""A picture in a link: as the network takes it, it is a PNG file of some hundred bytes, or a WebP file."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fashion_cnn.retrieval.data_set_products import as_picture
from fashion_cnn.retrieval.products import png
from fashion_cnn.retrieval.web.refusals import Refused

# Of base64; four such pictures still fit into what servers and browsers take as an address.
MOST_CHARACTERS = 12_000
_QUALITIES = (95, 85, 70)


def carried(picture: Tensor) -> str:
    """A prepared picture `(C, H, W)` uint8 as text for a link: exact, but for colourful ones of 64 pixels and more.

    Raises Refused where it would be too long for one.
    """
    image = as_picture(picture)
    for content in (png(image), *(_webp(image, quality) for quality in _QUALITIES)):
        text = base64.urlsafe_b64encode(content).rstrip(b"=").decode()
        if len(text) <= MOST_CHARACTERS:
            return text
    raise Refused(
        413,
        "This network looks at pictures that are too large for a link: send the picture to the API, /api/search.",
    )


def _webp(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def uncarried(text: str, image_shape: tuple[int, int, int]) -> Tensor:
    """The picture `(C, H, W)` uint8 that a link carries. Raises Refused."""
    channels, height, width = image_shape
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG", "WEBP"]) as image:
            # Its size is known before a pixel is unpacked.
            if image.size == (width, height) and image.mode in ("L", "RGB"):
                pixels = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB")))
                return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
    except Exception:  # damaged files lead Pillow into errors of all kinds
        pass
    raise Refused(422, "The picture in this link is damaged, or for another network: choose the picture again.")
