"""Loss and accuracy of one split, summed over its batches."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy


class MeanLoss(Metric):
    """The mean over images of a loss that comes as the means of batches, NaN if one of them is.

    Torchmetrics' own MeanMetric drops NaN, or with `nan_strategy="disable"` the batches' sizes.
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        """Add the mean `loss` (a scalar) of so many images."""
        self.total += loss * images
        self.images += images

    def compute(self) -> Tensor:
        return self.total / self.images


class Ruler(nn.Module):
    """The metrics that every split is measured by, exact over batches and processes of any size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.loss = MeanLoss()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)

    @property
    def metrics(self) -> dict[str, Metric]:
        """By the name that follows the split's in a figure: `val/loss`."""
        return {"loss": self.loss, "accuracy": self.accuracy}

    def add(self, logits: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Add a batch: `logits` `(B, num_classes)`, `targets` `(B,)` and their mean `loss`."""
        self.loss.update(loss, len(targets))
        self.accuracy.update(logits, targets)

    def read_and_reset(self) -> dict[str, Tensor]:
        """The figures of all images since the last reset, over all processes."""
        figures = {name: metric.compute() for name, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset()
        return figures
