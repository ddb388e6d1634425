"""A picture in a link: as the network takes it, it is a PNG file of some hundred bytes."""

import base64
import binascii
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


def carried(picture: Tensor) -> str:
    """A prepared picture `(C, H, W)` uint8 as text for a link. Raises Refused where it would be too long for one."""
    text = base64.urlsafe_b64encode(png(as_picture(picture))).rstrip(b"=").decode()
    if len(text) > MOST_CHARACTERS:
        raise Refused(
            413,
            "This network looks at pictures that are too large for a link: send the picture to the API, /api/search.",
        )
    return text


def uncarried(text: str, image_shape: tuple[int, int, int]) -> Tensor:
    """The picture `(C, H, W)` uint8 that a link carries. Raises Refused."""
    channels, height, width = image_shape
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            # Its size is known before a pixel is unpacked.
            if image.size == (width, height) and image.mode == ("L" if channels == 1 else "RGB"):
                pixels = torch.from_numpy(np.array(image))
                return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
    except (binascii.Error, ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        pass  # whatever it is, it is not what a link of this page holds
    raise Refused(422, "The picture in this link is damaged, or for another network: choose the picture again.")
