"""Augmentations that change a whole batch at once, each image with its own random draw.

They take and return `(B, C, H, W)` tensors of any dtype on any device, before normalisation, and
draw from torch's global generator of that device, so `torch.manual_seed` repeats them.
"""

import torch
from torch import Tensor

from fashion_cnn.errors import UserError


def check_probability(owner: object, p: float) -> float:
    """`p`, or a UserError where it is none, which names the class of `owner`."""
    if not 0 <= p <= 1:
        raise UserError(f"{type(owner).__name__}: p={p!r} is not a probability: give a number from 0 to 1.")
    return p


class RandomFlip:
    """Mirror each image left to right with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_probability(self, p)

    def __call__(self, images: Tensor) -> Tensor:
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < self.p
        return torch.where(mirrored, images.flip(-1), images)


class RandomCrop:
    """Shift each image by up to `padding` pixels in each direction, filling with `fill`.

    The same as padding by `padding` and cropping back to the size at a random place.
    """

    def __init__(self, padding: int = 2, fill: int = 0) -> None:
        if padding < 0:
            raise UserError(f"padding={padding!r} is negative: give 0 pixels or more.")
        self.padding = padding
        self.fill = fill

    def __call__(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        pad = self.padding
        if not pad:
            return images
        padded = torch.nn.functional.pad(images, (pad, pad, pad, pad), value=self.fill)
        top, left = torch.randint(2 * pad + 1, (2, batch, 1), device=images.device)
        rows = top + torch.arange(height, device=images.device)
        columns = left + torch.arange(width, device=images.device)
        image = torch.arange(batch, device=images.device)
        # Channels last in the indexed result, since the indices are not adjacent.
        crops = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return crops.permute(0, 3, 1, 2)


class RandomErasing:
    """Overwrite one rectangle of each image, with probability `p`, by uniform noise.

    `scale` bounds the rectangle's share of the image's area, `ratio` its height over its width.
    Zhong et al., "Random Erasing Data Augmentation", 2017 (arXiv 1708.04896), with the rectangle's
    centre anywhere in the image, so that it may be cut off at the edge.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
    ) -> None:
        if len(scale) != 2 or not 0 <= scale[0] <= scale[1] <= 1:
            raise UserError(f"scale={list(scale)!r} must be two shares of the area, 0 <= low <= high <= 1.")
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise UserError(f"ratio={list(ratio)!r} must be two positive numbers, low <= high.")
        self.p = check_probability(self, p)
        self.scale = scale
        self.ratio = ratio

    def __call__(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        area, ratio, centre_y, centre_x, chosen = torch.rand(5, batch, device=images.device)
        area = (self.scale[0] + (self.scale[1] - self.scale[0]) * area) * height * width
        low, high = torch.tensor(self.ratio).log().tolist()
        ratio = (low + (high - low) * ratio).exp()
        erased = rectangles((height, width), (centre_y, centre_x), area, ratio) & (chosen < self.p)[:, None, None]
        noise = torch.randint_like(images, 256)
        return torch.where(erased[:, None], noise, images)


def rectangles(size: tuple[int, int], centre: tuple[Tensor, Tensor], area: Tensor, ratio: Tensor) -> Tensor:
    """The pixels of a rectangle in each image, cut off at the edge: `(B, *size)` bool.

    centre: of y and x, `(B,)` shares of the sides. area, in pixels, and ratio, of height to width: `(B,)`.
    """
    rows = _covered(size[0], centre[0], (area * ratio).sqrt())
    columns = _covered(size[1], centre[1], (area / ratio).sqrt())
    return rows[:, :, None] & columns[:, None, :]


def _covered(size: int, centre: Tensor, length: Tensor) -> Tensor:
    """Which of `size` pixels lie within `length` pixels round `centre`, a share of the side: `(B, size)`."""
    pixels = torch.arange(size, device=centre.device) + 0.5
    return (pixels - centre[:, None] * size).abs() < length[:, None] / 2
