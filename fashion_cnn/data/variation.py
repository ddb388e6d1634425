"""Augmentations for pictures that were taken from many sides and in many lights, a whole batch at once.

They take `(B, C, H, W)` tensors of 0 to 255 and return them as float32, each image with its own random draw from
torch's global generator of its device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.data.augmentation import check_probability
from fashion_cnn.errors import UserError


class RandomAffine:
    """Turn each image by up to `degrees`, scale it by a factor within `scale`, shear it by up to `shear` (the tangent
    of the angle) and shift it by up to the share `shift` of its sides, with probability `p`. Edge pixels fill the rest.
    """

    def __init__(
        self,
        degrees: float = 15,
        scale: Sequence[float] = (0.8, 1.2),
        shear: float = 0.1,
        shift: float = 0.1,
        p: float = 1.0,
    ) -> None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise UserError(f"RandomAffine: scale={list(scale)} must be two factors, 0 < low <= high.")
        self.degrees, self.scale, self.shear, self.shift = degrees, scale, shear, shift
        self.p = check_probability(self, p)

    def __call__(self, images: Tensor) -> Tensor:
        batch, device = len(images), images.device

        def drawn(most: float) -> Tensor:
            return (2 * torch.rand(batch, device=device) - 1) * most

        low, high = (math.log(factor) for factor in self.scale)
        scale = torch.exp(low + (high - low) * torch.rand(batch, device=device))
        angle, shear = drawn(math.radians(self.degrees)), drawn(self.shear)
        cosine, sine = angle.cos() / scale, angle.sin() / scale
        # From each place of the result to where it comes from, in halves of the sides.
        rows = [
            torch.stack([cosine, cosine * shear - sine, 2 * drawn(self.shift)], dim=1),
            torch.stack([sine, sine * shear + cosine, 2 * drawn(self.shift)], dim=1),
        ]
        moved = torch.stack(rows, dim=1)
        still = torch.eye(2, 3, device=device)
        moved = torch.where(torch.rand(batch, 1, 1, device=device) < self.p, moved, still)
        grid = functional.affine_grid(moved, list(images.shape), align_corners=False)
        return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


class RandomColour:
    """Multiply each channel of an image by a factor within 1 ± `gain` and add up to `shift` (of 255), the contrast of
    all channels by a common factor within 1 ± `contrast`; with probability `negative`, negate it, and with probability
    `shuffle` exchange its channels.
    """

    def __init__(
        self,
        gain: float = 0.2,
        shift: float = 0.1,
        contrast: float = 0.2,
        negative: float = 0.0,
        shuffle: float = 0.0,
    ) -> None:
        self.gain, self.shift, self.contrast = gain, shift, contrast
        self.negative, self.shuffle = check_probability(self, negative), check_probability(self, shuffle)

    def __call__(self, images: Tensor) -> Tensor:
        batch, channels = images.shape[:2]

        def drawn(most: float, *shape: int) -> Tensor:
            return (2 * torch.rand(batch, *shape, 1, 1, device=images.device) - 1) * most

        def happens(p: float) -> Tensor:
            return torch.rand(batch, 1, device=images.device) < p

        shuffled = torch.rand(batch, channels, device=images.device).argsort(dim=1)
        order = torch.where(happens(self.shuffle), shuffled, torch.arange(channels, device=images.device))
        images = images.float()[torch.arange(batch, device=images.device)[:, None], order]
        # All the rest is one factor and one summand for each channel, in one pass over the pixels.
        negated = happens(self.negative)[:, :, None, None]
        sign, base = torch.where(negated, -1.0, 1.0), torch.where(negated, 255.0, 0.0)
        grey = base + sign * images.mean(dim=(1, 2, 3), keepdim=True)
        contrast, gain = 1 + drawn(self.contrast, 1), 1 + drawn(self.gain, channels)
        summand = gain * (contrast * base + (1 - contrast) * grey) + drawn(self.shift, channels) * 255
        return torch.addcmul(summand, images, sign * contrast * gain).clamp_(0, 255)


class RandomBlur:
    """Blur each image with probability `p`: a random mixture of itself and what a Gaussian of `sigma` pixels leaves."""

    def __init__(self, p: float = 0.3, sigma: float = 1.5) -> None:
        if not sigma > 0:
            raise UserError(f"RandomBlur: sigma={sigma} is not possible: give a number of pixels above 0.")
        self.p = check_probability(self, p)
        self.sigma = sigma

    def __call__(self, images: Tensor) -> Tensor:
        images = images.float()
        reach = math.ceil(2 * self.sigma)
        places = torch.arange(-reach, reach + 1)
        bell = torch.exp(-((places / self.sigma) ** 2) / 2)
        weights = (bell / bell.sum()).tolist()
        blurred = functional.pad(images, (reach, reach, reach, reach), mode="replicate")
        for dim in (2, 3):
            # Many times as fast as a convolution of one channel.
            shifted = [blurred.narrow(dim, place, images.shape[dim]) for place in range(2 * reach + 1)]
            blurred = shifted[reach] * weights[reach]
            for place in range(reach):
                blurred.add_(shifted[place] + shifted[-1 - place], alpha=weights[place])
        share = torch.rand(len(images), 1, 1, 1, device=images.device)
        chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < self.p
        return images.lerp(blurred, torch.where(chosen, share, 0.0))
