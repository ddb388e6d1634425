"""Augmentations that change a whole batch at once, each image with its own random draw.

They take `(B, C, H, W)` tensors on any device, before normalisation, and draw from torch's global generator of that
device, so `torch.manual_seed` repeats them. Flips, crops and erasing keep the dtype; affine maps, colour and blur take
values of 0 to 255 and return float32.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

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
