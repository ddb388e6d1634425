"""Losses: cross-entropy with class weights, and the supervised contrastive loss on embeddings."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.errors import UserError


class CrossEntropy:
    """Cross-entropy with weights of the classes, averaged over the weights of the batch.

    Args:
        label_smoothing: smoothing of the labels, in [0, 1).
        class_weights: one weight of 0 or more per class; `balanced` for weights inversely proportional to the number of
            training images of each class, whose mean over the training images is 1; None for equal weights.

    Raises:
        UserError: if an argument is out of range.
    """

    def __init__(
        self, label_smoothing: float = 0.0, class_weights: Sequence[float] | Literal["balanced"] | None = None
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise UserError(f"loss.label_smoothing={label_smoothing} is not possible: give a number from 0 to below 1.")
        if isinstance(class_weights, str) and class_weights != "balanced":
            raise UserError(f"loss.class_weights={class_weights} is not possible: give balanced, a list, or null.")
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self._weights: Tensor | None = None
        if class_weights is not None and not isinstance(class_weights, str):
            self._weights = torch.tensor(class_weights, dtype=torch.float32)
            if not (self._weights >= 0).all() or not self._weights.any():
                raise UserError(f"loss.class_weights={list(class_weights)} is not possible: give positive numbers.")

    def initialise(self, targets: Tensor, num_classes: int) -> None:
        """Compute balanced weights from the number of training images of each class.

        Args:
            targets: class indices `(N,)` of the training images.
            num_classes: number of classes.
        """
        if self.class_weights == "balanced":
            counts = torch.bincount(targets, minlength=num_classes).clamp(min=1)
            self._weights = len(targets) / (num_classes * counts)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            logits: `(B, num_classes)`.
            targets: class indices `(B,)` or probabilities `(B, num_classes)`.

        Returns:
            A scalar; zero if the weights of all images are zero.

        Raises:
            UserError: if there is not one weight per class.
        """
        if self._weights is None:
            return functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        if len(self._weights) != logits.shape[1]:
            raise UserError(
                f"loss.class_weights has {len(self._weights)} weights for {logits.shape[1]} classes: give one each."
            )
        self._weights = self._weights.to(logits.device)
        total = functional.cross_entropy(
            logits, targets, self._weights, reduction="sum", label_smoothing=self.label_smoothing
        )
        # torch's own mean of probabilities is over the images, not over their weights.
        image_weights = self._weights[targets] if targets.ndim == 1 else targets @ self._weights.to(targets.dtype)
        weight = image_weights.sum()
        return torch.where(weight > 0, total / weight.clamp(min=torch.finfo(weight.dtype).tiny), 0.0)


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
        # Not -inf: a batch of one image would get an infinite logarithm, and infinity times zero is NaN.
        others = similarities.masked_fill(is_self, torch.finfo(similarities.dtype).min)
        log_probabilities = similarities - others.logsumexp(dim=1, keepdim=True)
        is_positive = (targets[:, None] == targets) & ~is_self
        positives = is_positive.sum(dim=1)
        losses = -(log_probabilities * is_positive).sum(dim=1) / positives.clamp(min=1)
        return self.weight * losses.sum() / (positives > 0).sum().clamp(min=1)
