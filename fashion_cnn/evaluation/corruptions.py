"""Twelve image corruptions at five severities, the same corrupted images for every network.

The conventions, and the strengths where these suit small images of clothes, follow Hendrycks and Dietterich,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019 (arXiv 1903.12261), and Mu and
Gilmer, "MNIST-C", 2019 (arXiv 1906.02337). Severity 1 is mild; at severity 5 a person can mostly still recognise the
item.

Each function takes float images `(B, C, H, W)` in [0, 1], a strength and a random generator, and returns images of the
same shape, which may leave [0, 1]. Lengths are fractions of the shorter side. Blurs replicate the image's edge;
rotation, shear, scale and translation fill with black.
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
# Sampling points along the line of a motion blur, per pixel of its length.
_POINTS_PER_PIXEL = 4
SEVERITIES = (1, 2, 3, 4, 5)
# Images corrupted at a time, which limits the memory for floats.
_CHUNK_SIZE = 1000


def shot_noise(images: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Poisson noise, where a white pixel has `photons` photons on average."""
    return torch.poisson(images * photons, generator=generator) / photons


def impulse_noise(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Salt-and-pepper noise: set a fraction `share` of all values to black or white, with equal probability."""
    draw = torch.rand(images.shape, generator=generator)
    return images.masked_fill(draw < share, 0).masked_fill(draw < share / 2, 1)


def brightness(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Add `amount` to all values."""
    return images + amount


def contrast(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Scale the differences to the mean of each channel by `share`."""
    return torch.lerp(images.mean(dim=(2, 3), keepdim=True), images, share)


def inversion(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Replace a fraction `share` of each image by its negative, starting at a random edge.

    A blend of image and negative would be uniform grey at one half.
    """
    batch, _, height, width = images.shape
    from_top = (torch.arange(height) + 0.5) / height
    from_left = (torch.arange(width) + 0.5) / width
    distances = torch.broadcast_tensors(from_top[:, None], 1 - from_top[:, None], from_left, 1 - from_left)
    edges = torch.randint(len(distances), (batch,), generator=generator)
    return torch.where(torch.stack(distances)[edges][:, None] < share, 1 - images, images)


def erasing(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Cover a fraction `share` of each image by a mid-grey rectangle inside it, with an aspect ratio of at most 2."""
    batch, _, height, width = images.shape
    log_ratio, *corner = torch.rand(batch, 3, generator=generator).unbind(1)
    area, ratio = torch.tensor(share * height * width), 2 ** (2 * log_ratio - 1)
    sides = ((area * ratio).sqrt() / height, (area / ratio).sqrt() / width)
    centre_y, centre_x = ((1 - side) * offset + side / 2 for side, offset in zip(sides, corner, strict=True))
    mask = rectangle_masks((height, width), (centre_y, centre_x), area, ratio)
    return images.masked_fill(mask[:, None], _GREY)


def gaussian_blur(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Convolve with a Gaussian of this standard deviation, truncated at four standard deviations."""
    sigma = deviation * min(images.shape[2:])
    radius = math.ceil(4 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    planes = images.flatten(0, 1)[:, None]
    padded = functional.pad(planes, (radius,) * 4, mode="replicate")
    blurred = functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return blurred.view(images.shape)


def motion_blur(images: Tensor, length: float, generator: torch.Generator) -> Tensor:
    """Average each image along a line of this length, in a random direction."""
    angle = math.pi * torch.rand(len(images), generator=generator)
    kernels = _lines(length * min(images.shape[2:]), angle)
    padded = functional.pad(images, (kernels.shape[-1] // 2,) * 4, mode="replicate")
    # A group for each image, with its channels as the batch.
    return functional.conv2d(padded.transpose(0, 1), kernels[:, None], groups=len(images)).transpose(0, 1)


def _lines(length: float, angle: Tensor) -> Tensor:
    """Kernels `(B, K, K)` of sum 1: a line of `length` pixels through the centre at each `angle` `(B,)`, in radians."""
    radius = math.ceil(length / 2)
    points = torch.linspace(-length / 2, length / 2, math.ceil(length) * _POINTS_PER_PIXEL)
    pixels = torch.arange(-radius, radius + 1)

    def weights(position: Tensor) -> Tensor:
        """Bilinear weights `(B, points, K)` of each pixel at each point of the line."""
        return (1 - (position[:, :, None] - pixels).abs()).clamp(min=0)

    rows, columns = weights(angle.sin()[:, None] * points), weights(angle.cos()[:, None] * points)
    return torch.einsum("bpy,bpx->byx", rows, columns) / len(points)


def rotation(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Rotate each image about its centre by `degrees`, clockwise or counterclockwise."""
    angle = math.radians(degrees) * _signs(images, generator)
    return _warp(images, [[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])


def shear(images: Tensor, slope: float, generator: torch.Generator) -> Tensor:
    """Shift each row by `slope` times its height above the centre, to the left or right."""
    one, zero = torch.ones(len(images)), torch.zeros(len(images))
    return _warp(images, [[one, slope * _signs(images, generator)], [zero, one]])


def scale(images: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Scale each image about its centre by `size`."""
    one, zero = torch.ones(len(images)), torch.zeros(len(images))
    return _warp(images, [[one / size, zero], [zero, one / size]])


def translation(images: Tensor, distance: float, generator: torch.Generator) -> Tensor:
    """Shift each image by whole pixels in a random direction; `distance` is a fraction of the shorter side."""
    angle = 2 * math.pi * torch.rand(len(images), generator=generator)
    pixels = distance * min(images.shape[2:])
    one, zero = torch.ones(len(images)), torch.zeros(len(images))
    shift = torch.stack([(pixels * angle.cos()).round(), (pixels * angle.sin()).round()], dim=1)
    return _warp(images, [[one, zero], [zero, one]], shift)


def _signs(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs `(B,)`, 1 or -1."""
    return torch.randint(2, (len(images),), generator=generator) * 2.0 - 1


def _warp(images: Tensor, matrix: list[list[Tensor]], shift: Tensor | None = None) -> Tensor:
    """Apply affine maps with bilinear interpolation.

    Args:
        images: `(B, C, H, W)`.
        matrix: 2 x 2 entries `(B,)` of the maps from output to input coordinates, in pixels from the centre.
        shift: `(B, 2)`, translation of the image in pixels, x and y.
    """
    sides = torch.tensor([images.shape[3], images.shape[2]])
    linear = torch.stack([torch.stack(row, dim=1) for row in matrix], dim=1)
    # `affine_grid` measures x and y in half widths and half heights.
    linear = linear * sides / sides[:, None]
    offset = torch.zeros(len(images), 2) if shift is None else -2 * shift / sides
    grid = functional.affine_grid(torch.cat([linear, offset[:, :, None]], dim=2), list(images.shape), False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@dataclass(frozen=True)
class Corruption:
    """A corruption at five severities.

    Attributes:
        function: `(images, strength, generator) -> images`.
        strengths: the strength at each severity.
    """

    function: Callable[[Tensor, float, torch.Generator], Tensor]
    strengths: tuple[float, float, float, float, float]

    def __call__(self, images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
        """Corrupt images.

        Args:
            images: `(B, C, H, W)` float in [0, 1], on the CPU.
            severity: 1 to 5.
            generator: source of randomness.

        Returns:
            Images of the same shape and range.

        Raises:
            UserError: if the severity is not one of the five.
        """
        if severity not in SEVERITIES:
            raise UserError(f"severity={severity} is not possible: give 1 (mild) to 5 (strong).")
        return self.function(images, self.strengths[severity - 1], generator).clamp(0, 1)


# The functions document their strengths; lengths are fractions of the image's shorter side.
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
    """Corrupt all images of a split.

    Args:
        images: `(N, C, H, W)` uint8, on the CPU.
        name: the corruption, a key of CORRUPTIONS.
        severity: 1 to 5.
        seed: with name and severity, determines all random draws.

    Returns:
        Corrupted images `(N, C, H, W)` uint8.

    Raises:
        UserError: if there is no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise UserError(f"There is no corruption {name!r}: choose one of {', '.join(CORRUPTIONS)}.")
    generator = torch.Generator().manual_seed(derive_seed("corruption", seed, name, severity))
    chunks = [CORRUPTIONS[name](chunk / 255, severity, generator) for chunk in images.split(_CHUNK_SIZE)]
    return torch.cat([(chunk * 255).round().to(torch.uint8) for chunk in chunks])
