"""Corruptions that move the pixels: rotation, shear, scale, translation. What comes in from outside is black.

All take float images `(B, C, H, W)` in [0, 1], a strength and the generator of what is random, and return the like.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


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
