"""Loss and accuracy of one split, summed over its batches."""

from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy


class Ruler(nn.ModuleDict):
    """The metrics that every split is measured by, exact over batches and processes of any size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            {
                "loss": MeanMetric(nan_strategy="disable"),
                "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            }
        )

    def add(self, logits: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Add a batch: `logits` `(B, num_classes)`, `targets` `(B,)` and their mean `loss`."""
        self["loss"].update(loss, len(targets))
        self["accuracy"].update(logits, targets)

    def compute(self) -> dict[str, Tensor]:
        """`loss` and `accuracy` (0 to 1) of all images since the last reset, over all processes."""
        return {name: metric.compute() for name, metric in self.items()}

    def reset(self) -> None:
        for metric in self.values():
            metric.reset()
