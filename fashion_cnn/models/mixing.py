"""Two training images in one, with the labels of both: a whole batch at once, each image with its own random draw.

They take normalised images `(B, C, H, W)` and the probabilities of the classes `(B, num_classes)` that are to be
learned, and return both, mixed, and how much of each image is its own `(B,)`. The partner of an image is the one before
it, which is another in each epoch.
"""

import torch
from torch import Tensor

from fashion_cnn.data.augmentation import check_probability, rectangle_masks
from fashion_cnn.errors import UserError


class CutMix:
    """Paste a rectangle of its partner into each image with probability `p`; the labels count by their areas.

    The rectangle has the image's proportions and covers a share of it drawn from Beta(`alpha`, `alpha`), less where it
    is cut off at the edge. Yun et al., "CutMix", 2019 (arXiv 1905.04899).
    """

    def __init__(self, p: float = 0.5, alpha: float = 1.0) -> None:
        self.p = check_probability(self, p)
        self.alpha = _check_alpha(alpha)

    def __call__(self, images: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, _, height, width = images.shape
        centre_y, centre_x = torch.rand(2, batch, device=images.device)
        area = _shares(self.p, self.alpha, batch, images.device) * height * width
        pasted = rectangle_masks((height, width), (centre_y, centre_x), area, torch.full_like(area, height / width))
        share = pasted.float().mean(dim=(1, 2))
        mixed = torch.where(pasted[:, None], images.roll(1, 0), images)
        return mixed, _with_partner(probabilities, share[:, None]), 1 - share


class MixUp:
    """Blend each image with its partner with probability `p`; images and labels count by the same shares.

    The partner's share is drawn from Beta(`alpha`, `alpha`). Zhang et al., "mixup", 2017 (arXiv 1710.09412).
    """

    def __init__(self, p: float = 1.0, alpha: float = 0.2) -> None:
        self.p = check_probability(self, p)
        self.alpha = _check_alpha(alpha)

    def __call__(self, images: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        share = _shares(self.p, self.alpha, len(images), images.device)
        mixed = _with_partner(images, share[:, None, None, None])
        return mixed, _with_partner(probabilities, share[:, None]), 1 - share


def _shares(p: float, alpha: float, batch: int, device: torch.device) -> Tensor:
    """How much of each image `(B,)` its partner becomes: none with probability 1 - `p`."""
    concentration = torch.full((batch,), float(alpha), device=device)
    # Unchecked: the check would have the host wait for a GPU at every step, and alpha was looked at before.
    share = torch.distributions.Beta(concentration, concentration, validate_args=False).sample()
    return torch.where(torch.rand(batch, device=device) < p, share, 0.0)


def _with_partner(values: Tensor, share: Tensor) -> Tensor:
    """Values `(B, …)` of which so much comes from the image before."""
    return values.lerp(values.roll(1, 0), share)


def _check_alpha(alpha: float) -> float:
    if not alpha > 0:
        raise UserError(f"mixing.alpha={alpha} is not possible: give a number above 0.")
    return alpha
