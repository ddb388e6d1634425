"""Parts of a user's own for the tests: networks without the attributes of ours, a loss, metrics, a LightningModule."""

import torch
from tiny_images import TinyDataModule
from torch import Tensor, nn
from torchmetrics import Metric

from fashion_cnn.models import ImageClassifier, StepOutput


class PlainNetwork(nn.Sequential):
    """A network of layers without names, which ends in a linear layer."""

    def __init__(self, *, in_channels: int, num_classes: int, width: int = 8) -> None:
        super().__init__(
            nn.Conv2d(in_channels, width, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(5),
            nn.Flatten(),
            nn.Linear(25 * width, num_classes),
        )


class ConvolutionalNetwork(nn.Module):
    """A network whose logits come from a convolution; its linear layer only scales channels."""

    def __init__(self, *, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Linear(in_channels, in_channels)
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 8, 5, stride=5), nn.ReLU(), nn.Conv2d(8, num_classes, 4))

    def forward(self, images: Tensor) -> Tensor:
        channels = self.scale(images.mean(dim=(2, 3)))
        return self.layers(images * (1 + 0.1 * channels)[:, :, None, None]).flatten(1)


class TupleNetwork(PlainNetwork):
    """A network that returns logits and something else."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(images), images


class ScaledClassifier(ImageClassifier):
    """An ImageClassifier with a parameter and an argument of its own."""

    def __init__(self, *, factor: float = 1.0, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * super().forward(images)

    def training_step(self, batch: object, batch_idx: int) -> StepOutput:
        return super().training_step(batch, batch_idx)  # type: ignore[arg-type]


class MarginLoss(nn.Module):
    """Cross-entropy of logits with a trained temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits / self.log_temperature.exp(), targets)


class IndexLoss:
    """A loss that takes class indices only."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -logits.log_softmax(dim=1)[torch.arange(len(targets)), targets].mean()


class LossPerImage:
    """A loss that forgets to average."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets, reduction="none")


class FaultyMetric(Metric):
    """A metric with a mistake in it."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        raise KeyError("a mistake of mine")

    def compute(self) -> Tensor:
        return torch.tensor(0.0)


class MeanRank(Metric):
    """Mean rank of the true class, from 1."""

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("ranks", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.ranks += (logits >= logits.gather(1, targets[:, None])).sum()
        self.images += len(targets)

    def compute(self) -> Tensor:
        return self.ranks / self.images


class WeightedRank(MeanRank):
    """The mean rank with a weight of each class, in a buffer."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(num_classes))

    def update(self, logits: Tensor, targets: Tensor) -> None:
        assert self.weights.device == logits.device
        super().update(logits, targets)


class NumpyData(TinyDataModule):
    """The tiny images as NumPy arrays: read-only, in reversed order, labels of 16 bits."""

    def load(self, *, train: bool):  # type: ignore[override]
        images, targets = (array.numpy()[::-1] for array in super().load(train=train))
        images.flags.writeable = False
        return images, targets.astype("uint16")


class ChangedData(TinyDataModule):
    """The tiny images after a change that the data module cannot use.

    Args:
        change: name of the change.
        split: the set that is changed.
    """

    def __init__(self, *, change: str, split: str = "train", **settings: object) -> None:
        self.change, self.split = change, split
        super().__init__(**settings)  # type: ignore[arg-type]

    def load(self, *, train: bool):  # type: ignore[override]
        images, targets = super().load(train=train)
        if train != (self.split == "train"):
            return images, targets
        return {
            "float": (images / 255, targets),
            "int64": (images.long(), targets),
            "channels last": (images.permute(0, 2, 3, 1), targets),
            "no channel": (images[:, 0].numpy(), targets),
            "fewer": (images[:100], targets[:100]),
            "float labels": (images, targets.float()),
            "one-hot": (images, torch.eye(4, dtype=torch.int64)[targets]),
            "too high": (images, targets + 1),
            "negative": (images, targets.numpy() - 1),
            "three": (images, targets, targets),
            "list": ([images], targets),
            "texts": (images, targets.numpy().astype(str)),
        }[self.change]


class NormalisedData(TinyDataModule):
    """A data set that knows its mean and standard deviation."""

    def __init__(self, *, val_size: int) -> None:
        super().__init__(mean=[0.5], std=[0.25], val_size=val_size)


class FixedData(TinyDataModule):
    """A data set whose constructor takes no arguments."""

    def __init__(self) -> None:
        super().__init__(val_size=32)


class AbsentData(TinyDataModule):
    """A data set that is not there."""

    def prepare_data(self) -> None:
        raise FileNotFoundError


class ToFloat:
    """An augmentation that scales the pixels to [0, 1]."""

    def __call__(self, images: Tensor) -> Tensor:
        return images / 255
