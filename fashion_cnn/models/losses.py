"""A loss on the embeddings themselves, so that a search finds more of the same class."""

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.errors import UserError


class SupervisedContrastive:
    """Draws the embeddings of a batch's images of one class together, and all others apart.

    Embeddings `(B, D)` and class indices `(B,)` in; a scalar out, times `weight`: the mean over images of the mean over
    the batch's other images of its class of -log softmax(cosine / `temperature`), the softmax being over all others.
    Khosla et al., "Supervised Contrastive Learning", 2020 (arXiv 2004.11362), equation 2, with one view an image.
    """

    def __init__(self, temperature: float = 0.1, weight: float = 0.5) -> None:
        if not temperature > 0 or not weight >= 0:
            raise UserError(
                f"embedding_loss.temperature={temperature} weight={weight} is not possible: give a temperature above 0 "
                "and a weight of 0 or more."
            )
        self.temperature = temperature
        self.weight = weight

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        directions = functional.normalize(embeddings.float(), dim=1)
        # Of bfloat16 the exponential would make steps.
        with torch.autocast(embeddings.device.type, enabled=False):
            scaled = directions @ directions.T / self.temperature
        itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
        log_shares = scaled - scaled.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
        kin = (targets[:, None] == targets) & ~itself
        kin_count = kin.sum(dim=1)
        losses = -(log_shares * kin).sum(dim=1) / kin_count.clamp(min=1)
        # An image that is alone in its class says nothing.
        return self.weight * losses.sum() / (kin_count > 0).sum().clamp(min=1)
