"""Corruptions that smear each pixel over its neighbours, as convolutions that repeat the image's edge around it.

All take float images `(B, C, H, W)` in [0, 1], a length as a share of the shorter side and the generator of what is
random, and return the like.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

# Places along a smear, for each pixel of its length.
_POINTS_A_PIXEL = 4


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
