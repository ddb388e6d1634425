"""Integrated gradients: how much each pixel adds to a class's logit, against a black image."""

from captum.attr import IntegratedGradients
from torch import Tensor, nn


def integrated_gradients(network: nn.Module, images: Tensor, classes: Tensor, black: Tensor) -> Tensor:
    """What each pixel adds to the logit of the class, or takes from it, `(B, H, W)`, summed over the channels.

    images: normalised, `(B, C, H, W)`. classes: `(B,)` int64. black: a normalised black image `(C, H, W)`. The sum over
    the pixels is the logit less that of the black image. Sundararajan et al., 2017 (arXiv 1703.01365), by captum.
    """
    given: Tensor = IntegratedGradients(network).attribute(
        images, baselines=black.expand_as(images), target=classes, n_steps=64, internal_batch_size=64
    )
    return given.sum(dim=1).detach().float()
