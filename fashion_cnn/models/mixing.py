"""CutMix and MixUp: training images mixed with another image of the batch, and their labels with its labels.

The partner of an image is the one before it in the batch, which differs in each epoch. Each image has its own random
draws.
"""

import torch
from torch import Tensor

from fashion_cnn.data.augmentation import check_probability, rectangle_masks
from fashion_cnn.errors import UserError


class CutMix:
    """Pastes a rectangle of its partner into each image with probability `p`; the labels are mixed by area.

    The rectangle has the image's proportions. Its share of the area is drawn from Beta(`alpha`, `alpha`) and is smaller
    where the edge cuts it off. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features", 2019 (arXiv 1905.04899).

    Args:
        p: probability of mixing an image.
        alpha: parameter of the Beta distribution, above 0.
    """

    def __init__(self, p: float = 0.5, alpha: float = 1.0) -> None:
        self.p = check_probability(self, p)
        self.alpha = _check_alpha(alpha)

    def __call__(self, images: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: normalised images `(B, C, H, W)`.
            probabilities: target probabilities `(B, num_classes)`.

        Returns:
            Mixed images and probabilities of the same shapes, and lambda `(B,)`, the share of each image that is not
            its partner's.
        """
        batch, _, height, width = images.shape
        centre_y, centre_x = torch.rand(2, batch, device=images.device, dtype=torch.float32)
        area = _sample_partner_shares(self.p, self.alpha, batch, images.device) * height * width
        pasted = rectangle_masks((height, width), (centre_y, centre_x), area, torch.full_like(area, height / width))
        partner_share = pasted.float().mean(dim=(1, 2))
        mixed = torch.where(pasted[:, None], images.roll(1, 0), images)
        return mixed, _blend(probabilities, partner_share[:, None]), 1 - partner_share


class MixUp:
    """Blends each image with its partner with probability `p`, and the labels by the same shares.

    The partner's share is drawn from Beta(`alpha`, `alpha`). Zhang et al., "mixup: Beyond Empirical Risk Minimization",
    2017 (arXiv 1710.09412).

    Args:
        p: probability of mixing an image.
        alpha: parameter of the Beta distribution, above 0.
    """

    def __init__(self, p: float = 1.0, alpha: float = 0.2) -> None:
        self.p = check_probability(self, p)
        self.alpha = _check_alpha(alpha)

    def __call__(self, images: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix a batch; see `CutMix.__call__`."""
        partner_share = _sample_partner_shares(self.p, self.alpha, len(images), images.device)
        mixed = _blend(images, partner_share[:, None, None, None])
        return mixed, _blend(probabilities, partner_share[:, None]), 1 - partner_share


def _sample_partner_shares(p: float, alpha: float, batch: int, device: torch.device) -> Tensor:
    """Draw 1 - lambda `(B,)` from Beta(`alpha`, `alpha`) with probability `p`, otherwise 0."""
    # In float32 at any trainer.precision: torch has no bfloat16 kernel of the distribution.
    # An Apple GPU has no kernel of it at all.
    sampled_on = torch.device("cpu") if device.type == "mps" else device
    concentration = torch.full((batch,), float(alpha), device=sampled_on, dtype=torch.float32)
    # Validation of the arguments would synchronise with the GPU in every step; alpha was checked before.
    share = torch.distributions.Beta(concentration, concentration, validate_args=False).sample().to(device)
    return torch.where(torch.rand(batch, device=device, dtype=torch.float32) < p, share, 0.0)


def _blend(values: Tensor, partner_share: Tensor) -> Tensor:
    """Interpolate from values `(B, ...)` to those of the partners."""
    return values.lerp(values.roll(1, 0), partner_share.to(values.dtype))


def _check_alpha(alpha: float) -> float:
    if not alpha > 0:
        raise UserError(f"mixing.alpha={alpha} is not possible: give a number above 0.")
    return alpha
