"""Loss and accuracy of one split, summed over its batches."""

from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy


class Ruler(nn.Module):
    """The metrics that every split is measured by, exact over batches and processes of any size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.loss = MeanMetric(nan_strategy="disable")
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
