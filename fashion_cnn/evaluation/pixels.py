"""Corruptions that change the pixels where they are: noise, light, and what covers a part of the image.

All take float images `(B, C, H, W)` in [0, 1], a strength and the generator of what is random, and return images of
that shape, which may leave [0, 1].
"""

import torch
from torch import Tensor

from fashion_cnn.data.augmentation import rectangles

_GREY = 0.5


def shot_noise(images: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Count light in grains, of which a white pixel catches so many `photons` on average."""
    return torch.poisson(images * photons, generator=generator) / photons


def impulse_noise(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set a share of all values to black or white, half of them each."""
    draw = torch.rand(images.shape, generator=generator)
    return images.masked_fill(draw < share, 0).masked_fill(draw < share / 2, 1)


def brightness(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Add `amount` to all values."""
    return images + amount


def contrast(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Pull all values towards the mean of their channel, so that `share` of the distance is left."""
    return torch.lerp(images.mean(dim=(2, 3), keepdim=True), images, share)


def inversion(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Turn a share of each image into its negative, from one of its four edges on.

    A blend of image and negative would be uniform grey half way, and no severity of what the negative is.
    """
    batch, _, height, width = images.shape
    from_top = (torch.arange(height) + 0.5) / height
    from_left = (torch.arange(width) + 0.5) / width
    ways = [way.expand(height, width) for way in (from_top[:, None], 1 - from_top[:, None], from_left, 1 - from_left)]
    chosen = torch.randint(len(ways), (batch,), generator=generator)
    return torch.where(torch.stack(ways)[chosen][:, None] < share, 1 - images, images)


def erasing(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Cover a share of each image by one mid-grey rectangle, at most twice as long as wide, that lies within it."""
    batch, _, height, width = images.shape
    lengthening, *corner = torch.rand(batch, 3, generator=generator).unbind(1)
    area, ratio = torch.tensor(share * height * width), 2 ** (2 * lengthening - 1)
    sides = ((area * ratio).sqrt() / height, (area / ratio).sqrt() / width)
    centre_y, centre_x = ((1 - side) * place + side / 2 for side, place in zip(sides, corner, strict=True))
    covered = rectangles((height, width), (centre_y, centre_x), area, ratio)
    return images.masked_fill(covered[:, None], _GREY)
