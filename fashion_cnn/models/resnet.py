"""A small residual network that lowers the resolution early: the arithmetic is what a CPU runs short of."""

from collections.abc import Sequence

from torch import Tensor, nn

from fashion_cnn.models.dropout import Dropout


class ResNet(nn.Module):
    """A stem at full resolution, then stages of residual blocks, each behind a 2x2 max pooling.

    stem: channels of each convolution before the first pooling. widths: channels of each stage; multiples of 16 suit
    the vector units. depths: residual blocks of each stage. dropout: before the classifier.
    Images `(B, C, H, W)` in, logits `(B, num_classes)` out. H and W must be at least
    2 ** number of stages.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        stem: Sequence[int],
        widths: Sequence[int],
        depths: Sequence[int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in stem:
            layers += [convolution(channels, width), nn.ReLU(inplace=True)]
            channels = width
        for width, depth in zip(widths, depths, strict=True):
            # Pooling comes first, so that the widening convolution works at the lower resolution.
            # Before an activation it gives the same numbers, and leaves it a quarter of the work.
            layers.insert(len(layers) - (bool(layers) and isinstance(layers[-1], nn.ReLU)), nn.MaxPool2d(2))
            layers += [convolution(channels, width), nn.ReLU(inplace=True)]
            layers += [ResidualBlock(width) for _ in range(depth)]
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees: `(B, widths[-1])`, averaged over the last stage's pixels."""
        return self.trunk(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.features(images)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, `(B, width, H, W)` in and out. He et al., 2015."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = convolution(width, width), convolution(width, width)
        self.branch = nn.Sequential(first, nn.ReLU(inplace=True), second)
        self.activation = nn.ReLU(inplace=True)
        # Each block starts as the identity (Goyal et al., 2017), which steadies a high learning rate.
        nn.init.zeros_(second.get_submodule("1").get_parameter("weight"))

    def forward(self, images: Tensor) -> Tensor:
        return self.activation(images + self.branch(images))


def convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 3x3 convolution that keeps the size, with batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
    )
