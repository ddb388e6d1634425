"""Supervised contrastive loss on embeddings, which makes images of one class neighbours in a search."""

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.errors import UserError


class SupervisedContrastive:
    """Pulls embeddings of the same class together and pushes those of different classes apart.

    Khosla et al., "Supervised Contrastive Learning", 2020 (arXiv 2004.11362), equation 2, with one view an image. For
    an image i with positives P(i), the other images of its class in the batch, the loss is

        -1 / |P(i)| * sum over p in P(i) of log softmax(cosine(i, p) / temperature),

    the softmax being over all other images of the batch.

    Args:
        temperature: divisor of the cosines, above 0.
        weight: factor of the loss, 0 or more.

    Raises:
        UserError: if an argument is out of range.
    """

    def __init__(self, temperature: float = 0.1, weight: float = 0.5) -> None:
        if not temperature > 0 or not weight >= 0:
            raise UserError(
                f"embedding_loss.temperature={temperature} weight={weight} is not possible: "
                "give a temperature above 0 and a weight of 0 or more."
            )
        self.temperature = temperature
        self.weight = weight

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted mean loss over the images that have positives.

        Args:
            embeddings: `(B, D)`, of any length.
            targets: class indices `(B,)`.

        Returns:
            A scalar; zero if no image has a positive.
        """
        directions = functional.normalize(embeddings.float(), dim=1)
        # In float32: bfloat16 cosines are too coarse for the exponential.
        with torch.autocast(embeddings.device.type, enabled=False):
            similarities = directions @ directions.T / self.temperature
        is_self = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
        others = similarities.masked_fill(is_self, -torch.inf)
        log_probabilities = similarities - others.logsumexp(dim=1, keepdim=True)
        is_positive = (targets[:, None] == targets) & ~is_self
        positives = is_positive.sum(dim=1)
        losses = -(log_probabilities * is_positive).sum(dim=1) / positives.clamp(min=1)
        return self.weight * losses.sum() / (positives > 0).sum().clamp(min=1)
