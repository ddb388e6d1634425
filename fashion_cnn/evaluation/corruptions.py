"""Twelve ways to spoil an image, each at five severities: the same spoilt images for every network.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019
(arXiv 1903.12261), and Mu and Gilmer, "MNIST-C", 2019 (arXiv 1906.02337), whose conventions and, where they suit small
images of clothes, strengths these are. Severity 1 is mild; at 5 a person mostly still knows what it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fashion_cnn.data.seeding import derive_seed
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation import blurs, pixels, warps

SEVERITIES = (1, 2, 3, 4, 5)
# Images spoilt at a time, so that only so many are ever held as floats.
_BLOCK = 1000


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
    "shot_noise": Corruption(pixels.shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(pixels.impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": Corruption(blurs.gaussian_blur, (0.02, 0.03, 0.04, 0.05, 0.065)),
    "motion_blur": Corruption(blurs.motion_blur, (0.1, 0.15, 0.2, 0.27, 0.35)),
    "brightness": Corruption(pixels.brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(pixels.contrast, (0.75, 0.5, 0.35, 0.22, 0.15)),
    "rotation": Corruption(warps.rotation, (10, 20, 30, 45, 60)),
    "shear": Corruption(warps.shear, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "scale": Corruption(warps.scale, (0.9, 0.8, 0.7, 0.6, 0.5)),
    "translation": Corruption(warps.translation, (0.05, 0.1, 0.15, 0.2, 0.25)),
    "inversion": Corruption(pixels.inversion, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "erasing": Corruption(pixels.erasing, (0.05, 0.1, 0.2, 0.3, 0.4)),
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
