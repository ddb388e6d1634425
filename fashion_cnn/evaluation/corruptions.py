"""Twelve corruptions of an image, each at five severities: the same spoilt images for every network.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019
(arXiv 1903.12261), and Mu and Gilmer, "MNIST-C", 2019 (arXiv 1906.02337), whose conventions and, where they suit small
images of clothes, strengths these are. Severity 1 is mild; at 5 a person mostly still knows what it is.

Each function takes float images `(B, C, H, W)` in [0, 1], a strength and the generator of what is random, and returns
images of that shape, which may leave [0, 1]. Lengths are shares of the shorter side. Blurs are convolutions that repeat
the image's edge around it; what rotation, shear, scale and translation bring in from outside is black.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.data.augmentation import rectangle_masks
from fashion_cnn.data.splits import derive_seed
from fashion_cnn.errors import UserError

_GREY = 0.5
# Places along a smear, for each pixel of its length.
_POINTS_A_PIXEL = 4
SEVERITIES = (1, 2, 3, 4, 5)
# Images spoilt at a time, so that only so many are ever held as floats.
_BLOCK = 1000


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
    covered = rectangle_masks((height, width), (centre_y, centre_x), area, ratio)
    return images.masked_fill(covered[:, None], _GREY)


def gaussian_blur(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Convolve with a Gaussian of this standard deviation, cut off at four of them."""
    sigma = deviation * min(images.shape[2:])
    radius = math.ceil(4 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    planes = images.flatten(0, 1)[:, None]
    padded = functional.pad(planes, (radius,) * 4, mode="replicate")
    blurred = functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return blurred.view(images.shape)


def motion_blur(images: Tensor, length: float, generator: torch.Generator) -> Tensor:
    """Smear each image evenly along a line of this length, in a direction of its own."""
    angle = math.pi * torch.rand(len(images), generator=generator)
    kernels = _lines(length * min(images.shape[2:]), angle)
    padded = functional.pad(images, (kernels.shape[-1] // 2,) * 4, mode="replicate")
    # One group an image, its channels as the batch.
    return functional.conv2d(padded.transpose(0, 1), kernels[:, None], groups=len(images)).transpose(0, 1)


def _lines(length: float, angle: Tensor) -> Tensor:
    """Kernels `(B, K, K)` of sum 1 that hold a line of `length` pixels through the centre at each `angle` `(B,)`."""
    radius = math.ceil(length / 2)
    along = torch.linspace(-length / 2, length / 2, math.ceil(length) * _POINTS_A_PIXEL)
    pixels = torch.arange(-radius, radius + 1)

    def weights(position: Tensor) -> Tensor:
        """Of each pixel at each place along the line, as bilinear interpolation parts it: `(B, points, K)`."""
        return (1 - (position[:, :, None] - pixels).abs()).clamp(min=0)

    rows, columns = weights(angle.sin()[:, None] * along), weights(angle.cos()[:, None] * along)
    return torch.einsum("bpy,bpx->byx", rows, columns) / len(along)


def rotation(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Turn each image about its centre by so many degrees, one way or the other."""
    angle = math.radians(degrees) * _signs(images, generator)
    return _warp(images, [[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])


def shear(images: Tensor, slope: float, generator: torch.Generator) -> Tensor:
    """Shift each row sideways by `slope` times its height above the centre, one way or the other."""
    one, zero = torch.ones(len(images)), torch.zeros(len(images))
    return _warp(images, [[one, slope * _signs(images, generator)], [zero, one]])


def scale(images: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Shrink each image about its centre to `size` times its own size."""
    one, zero = torch.ones(len(images)), torch.zeros(len(images))
    return _warp(images, [[one / size, zero], [zero, one / size]])


def translation(images: Tensor, distance: float, generator: torch.Generator) -> Tensor:
    """Move each image by this share of its shorter side in a direction of its own, to whole pixels."""
    angle = 2 * math.pi * torch.rand(len(images), generator=generator)
    pixels = distance * min(images.shape[2:])
    one, zero = torch.ones(len(images)), torch.zeros(len(images))
    shift = torch.stack([(pixels * angle.cos()).round(), (pixels * angle.sin()).round()], dim=1)
    return _warp(images, [[one, zero], [zero, one]], shift)


def _signs(images: Tensor, generator: torch.Generator) -> Tensor:
    """1 or -1 for each image, `(B,)`."""
    return torch.randint(2, (len(images),), generator=generator) * 2.0 - 1


def _warp(images: Tensor, matrix: list[list[Tensor]], shift: Tensor | None = None) -> Tensor:
    """Fill each pixel from where `matrix` leads from it, interpolating between the four nearest.

    matrix: rows of the entries `(B,)` that take (x, y) from the centre, in pixels, to the place to read.
    shift: `(B, 2)` pixels in x and y that the image is moved by.
    """
    sides = torch.tensor([images.shape[3], images.shape[2]])
    linear = torch.stack([torch.stack(row, dim=1) for row in matrix], dim=1)
    # `affine_grid` reckons in half sides, of which x and y may have different ones.
    linear = linear * sides / sides[:, None]
    offset = torch.zeros(len(images), 2) if shift is None else -2 * shift / sides
    grid = functional.affine_grid(torch.cat([linear, offset[:, :, None]], dim=2), list(images.shape), False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@dataclass(frozen=True)
class Corruption:
    """spoil: `(images, strength, generator) -> images`. strengths: of the five severities."""

    spoil: Callable[[Tensor, float, torch.Generator], Tensor]
    strengths: tuple[float, float, float, float, float]

    def __call__(self, images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
        """Spoil float images `(B, C, H, W)` in [0, 1] on the CPU; the result is the like.

        Raises UserError for a severity that is none of the five.
        """
        if severity not in SEVERITIES:
            raise UserError(f"severity={severity} is not possible: give 1 (mild) to 5 (strong).")
        return self.spoil(images, self.strengths[severity - 1], generator).clamp(0, 1)


# What a strength is, each function says; lengths are shares of the image's shorter side.
CORRUPTIONS = {
    "shot_noise": Corruption(shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": Corruption(gaussian_blur, (0.02, 0.03, 0.04, 0.05, 0.065)),
    "motion_blur": Corruption(motion_blur, (0.1, 0.15, 0.2, 0.27, 0.35)),
    "brightness": Corruption(brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.35, 0.22, 0.15)),
    "rotation": Corruption(rotation, (10, 20, 30, 45, 60)),
    "shear": Corruption(shear, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "scale": Corruption(scale, (0.9, 0.8, 0.7, 0.6, 0.5)),
    "translation": Corruption(translation, (0.05, 0.1, 0.15, 0.2, 0.25)),
    "inversion": Corruption(inversion, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "erasing": Corruption(erasing, (0.05, 0.1, 0.2, 0.3, 0.4)),
}


def corrupt(images: Tensor, name: str, severity: int, *, seed: int = 0) -> Tensor:
    """The images `(N, C, H, W)` uint8 on the CPU under the corruption `name`, as uint8.

    What is random of it follows from seed, name and severity alone, so give all images of a split at once.
    Raises UserError for a corruption or severity that there is not.
    """
    if name not in CORRUPTIONS:
        raise UserError(f"There is no corruption {name!r}: there are {', '.join(CORRUPTIONS)}.")
    generator = torch.Generator().manual_seed(derive_seed("corruption", seed, name, severity))
    spoilt = [CORRUPTIONS[name](block / 255, severity, generator) for block in images.split(_BLOCK)]
    return torch.cat([(block * 255).round().to(torch.uint8) for block in spoilt])
