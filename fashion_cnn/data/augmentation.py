"""Augmentations of whole batches, each image with its own random parameters.

They take `(B, C, H, W)` tensors on any device, before normalisation, and draw from torch's global generator of that
device, so `torch.manual_seed` makes them repeatable. Flips, crops and erasing keep the dtype; affine maps, colour and
blur take values of 0 to 255 and return float32.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.errors import UserError


def check_probability(owner: object, p: float) -> float:
    """Return `p`, or raise UserError with the class name of `owner` if it is not a probability."""
    if not 0 <= p <= 1:
        raise UserError(f"{type(owner).__name__}: p={p!r} is not a probability: give a number from 0 to 1.")
    return p


def _uniform(limit: float, size: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw from the uniform distribution on [-limit, limit)."""
    return (2 * torch.rand(size, device=device) - 1) * limit


class RandomFlip:
    """Horizontal flip of each image.

    Args:
        p: probability of each image to be flipped.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_probability(self, p)

    def __call__(self, images: Tensor) -> Tensor:
        """Augment a batch `(B, C, H, W)`."""
        is_flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < self.p
        return torch.where(is_flipped, images.flip(-1), images)


class RandomCrop:
    """Shift of each image by a random number of pixels in each direction.

    The same as padding on all sides and cropping to the original size at a random position.

    Args:
        padding: largest shift in pixels, 0 or more.
        fill: value of the pixels that the shift uncovers, 0 to 255.
    """

    def __init__(self, padding: int = 2, fill: int = 0) -> None:
        if padding < 0:
            raise UserError(f"padding={padding!r} is negative: give 0 pixels or more.")
        self.padding = padding
        self.fill = fill

    def __call__(self, images: Tensor) -> Tensor:
        """Augment a batch `(B, C, H, W)`."""
        batch, _, height, width = images.shape
        pad = self.padding
        if not pad:
            return images
        padded = functional.pad(images, (pad, pad, pad, pad), value=self.fill)
        top, left = torch.randint(2 * pad + 1, (2, batch, 1), device=images.device)
        rows = top + torch.arange(height, device=images.device)
        columns = left + torch.arange(width, device=images.device)
        image = torch.arange(batch, device=images.device)
        # The indexed result has its channels last, since the indices are not adjacent.
        crops = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return crops.permute(0, 3, 1, 2)


class RandomErasing:
    """Uniform noise in one rectangle of each image, with probability `p`.

    Zhong et al., "Random Erasing Data Augmentation", 2017 (arXiv 1708.04896), but with the centre of the rectangle
    anywhere in the image, so that the edge may cut it off.

    Args:
        p: probability of each image to be changed.
        scale: lowest and highest area of the rectangle, as a fraction of the image's.
        ratio: lowest and highest ratio of its height to its width.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
    ) -> None:
        if len(scale) != 2 or not 0 <= scale[0] <= scale[1] <= 1:
            raise UserError(f"scale={list(scale)!r} must be two fractions of the area, 0 <= low <= high <= 1.")
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise UserError(f"ratio={list(ratio)!r} must be two positive numbers, low <= high.")
        self.p = check_probability(self, p)
        self.scale = scale
        self.ratio = ratio

    def __call__(self, images: Tensor) -> Tensor:
        """Augment a batch `(B, C, H, W)`."""
        batch, _, height, width = images.shape
        area, ratio, centre_y, centre_x, uniform = torch.rand(5, batch, device=images.device)
        area = (self.scale[0] + (self.scale[1] - self.scale[0]) * area) * height * width
        low, high = torch.tensor(self.ratio).log().tolist()
        ratio = (low + (high - low) * ratio).exp()
        erased = rectangle_masks((height, width), (centre_y, centre_x), area, ratio)
        erased &= (uniform < self.p)[:, None, None]
        noise = torch.randint_like(images, 256)
        return torch.where(erased[:, None], noise, images)


def rectangle_masks(size: tuple[int, int], centre: tuple[Tensor, Tensor], area: Tensor, ratio: Tensor) -> Tensor:
    """Return a mask of one rectangle per image, cut off at the edge.

    Args:
        size: height and width of the images in pixels.
        centre: y and x of the centres, `(B,)` each, as fractions of the sides.
        area: `(B,)`, in pixels.
        ratio: `(B,)`, height over width.

    Returns:
        `(B, *size)` bool.
    """
    rows = _interval_masks(size[0], centre[0], (area * ratio).sqrt())
    columns = _interval_masks(size[1], centre[1], (area / ratio).sqrt())
    return rows[:, :, None] & columns[:, None, :]


def _interval_masks(size: int, centre: Tensor, length: Tensor) -> Tensor:
    """Return `(B, size)` bool: the pixels within `length` pixels around `centre`, a fraction of the side."""
    pixels = torch.arange(size, device=centre.device) + 0.5
    return (pixels - centre[:, None] * size).abs() < length[:, None] / 2


class RandomAffine:
    """Rotation, scaling, shear and shift of each image, with probability `p`; edge pixels fill the rest.

    Args:
        degrees: largest angle of the rotation, in either direction.
        scale: lowest and highest factor of the size.
        shear: largest shear, as the tangent of its angle.
        shift: largest shift, as a fraction of the sides.
        p: probability of each image to be changed.
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
        """Augment a batch `(B, C, H, W)`."""
        (batch, _, height, width), device = images.shape, images.device
        size = (batch,)
        low, high = (math.log(factor) for factor in self.scale)
        scale = torch.exp(low + (high - low) * torch.rand(size, device=device))
        angle, shear = _uniform(math.radians(self.degrees), size, device), _uniform(self.shear, size, device)
        cosine, sine = angle.cos() / scale, angle.sin() / scale
        # Maps each position of the result to its source, in coordinates from -1 to 1, whose units are half the sides.
        to_x, to_y = (cosine * shear - sine) * (height / width), sine * (width / height)
        rows = [
            torch.stack([cosine, to_x, 2 * _uniform(self.shift, size, device)], dim=1),
            torch.stack([to_y, sine * shear + cosine, 2 * _uniform(self.shift, size, device)], dim=1),
        ]
        is_changed = torch.rand(len(images), 1, 1, device=device) < self.p
        maps = torch.where(is_changed, torch.stack(rows, dim=1), torch.eye(2, 3, device=device))
        grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
        return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


class RandomColour:
    """Random brightness, contrast and colour of each image, clamped to 0 to 255.

    Args:
        gain: each channel is multiplied by a factor within 1 ± `gain`.
        shift: a value within ± `shift` (of 255) is added to each channel.
        contrast: the contrast of all channels is multiplied by a common factor within 1 ± `contrast`.
        negative: probability of an image to be negated.
        shuffle: probability of an image to have its channels permuted.
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
        """Augment a batch `(B, C, H, W)`."""
        (batch, channels), device = images.shape[:2], images.device
        each_image, each_channel = (batch, 1, 1, 1), (batch, channels, 1, 1)

        shuffled = torch.rand(batch, channels, device=device).argsort(dim=1)
        is_shuffled = torch.rand(batch, 1, device=device) < self.shuffle
        order = torch.where(is_shuffled, shuffled, torch.arange(channels, device=device))
        images = images.float()[torch.arange(batch, device=device)[:, None], order]
        # The rest is one factor and one summand per channel, applied in one pass over the pixels.
        negated = torch.rand(each_image, device=device) < self.negative
        sign, base = torch.where(negated, -1.0, 1.0), torch.where(negated, 255.0, 0.0)
        grey = base + sign * images.mean(dim=(1, 2, 3), keepdim=True)
        contrast = 1 + _uniform(self.contrast, each_image, device)
        gain = 1 + _uniform(self.gain, each_channel, device)
        shift = _uniform(self.shift, each_channel, device) * 255
        summand = gain * (contrast * base + (1 - contrast) * grey) + shift
        return torch.addcmul(summand, images, sign * contrast * gain).clamp_(0, 255)


class RandomBlur:
    """Gaussian blur of each image with probability `p`, mixed with the sharp image in a random proportion.

    Args:
        p: probability of each image to be changed.
        sigma: standard deviation of the Gaussian in pixels.
    """

    def __init__(self, p: float = 0.3, sigma: float = 1.5) -> None:
        if not sigma > 0:
            raise UserError(f"RandomBlur: sigma={sigma} is not possible: give a number of pixels above 0.")
        self.p = check_probability(self, p)
        self.sigma = sigma

    def __call__(self, images: Tensor) -> Tensor:
        """Augment a batch `(B, C, H, W)`."""
        images = images.float()
        radius = math.ceil(2 * self.sigma)
        offsets = torch.arange(-radius, radius + 1)
        kernel = torch.exp(-((offsets / self.sigma) ** 2) / 2)
        weights = (kernel / kernel.sum()).tolist()
        blurred = functional.pad(images, (radius, radius, radius, radius), mode="replicate")
        for dim in (2, 3):
            # Several times faster than a depthwise convolution.
            shifted = [blurred.narrow(dim, start, images.shape[dim]) for start in range(2 * radius + 1)]
            blurred = shifted[radius] * weights[radius]
            for start in range(radius):
                blurred.add_(shifted[start] + shifted[-1 - start], alpha=weights[start])
        weight = torch.rand(len(images), 1, 1, 1, device=images.device)
        is_blurred = torch.rand(len(images), 1, 1, 1, device=images.device) < self.p
        return images.lerp(blurred, torch.where(is_blurred, weight, 0.0))
