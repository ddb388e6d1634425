"""The CNN of the Keras notebook that this project started from, as the baseline."""

from torch import Tensor, nn

from fashion_cnn.models.layers import Dropout


class KerasCNN(nn.Module):
    """Three unpadded 3x3 convolutions of 32, 64 and 128 channels with pooling and dropout, then a dense layer.

    Images `(B, C, H, W)` in, logits `(B, num_classes)` out. 241,546 parameters for grey images of 28 x 28 pixels and
    ten classes. The dense layer takes its input size from the first batch. Weights are initialised as in Keras: uniform
    after Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, and
    biases zero.

    Args:
        in_channels: channels C of the images.
        num_classes: number of logits.
    """

    def __init__(self, *, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(  # shapes for images of 28 x 28 pixels
            nn.Conv2d(in_channels, 32, 3),  # (B, 32, 26, 26)
            # ReLU is monotonic: after the pooling it gives the same values for a quarter of the work.
            nn.MaxPool2d(2),  # (B, 32, 13, 13)
            nn.ReLU(),
            Dropout(0.25),
            nn.Conv2d(32, 64, 3),  # (B, 64, 11, 11)
            nn.MaxPool2d(2),  # (B, 64, 5, 5)
            nn.ReLU(),
            Dropout(0.25),
            nn.Conv2d(64, 128, 3),  # (B, 128, 3, 3)
            nn.ReLU(),
            Dropout(0.4),
            nn.Flatten(),  # (B, 1152)
            _GlorotLazyLinear(128),
            nn.ReLU(),
        )
        self.dropout = Dropout(0.3)
        self.classifier = nn.Linear(128, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) or layer is self.classifier:
                _initialise_as_keras(layer)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)`."""
        height, width = (_receptive_size(side) for side in images.shape[2:])
        return self.classifier(self.dropout(self.trunk(images[..., :height, :width])))


def _receptive_size(side: int) -> int:
    """The part of an image's side that any output depends on: poolings drop an odd last row.

    Cropping the images to it saves a sixth of the convolutions' work and changes no output.
    """
    after_last_pooling = ((side - 2) // 2 - 2) // 2
    return (2 * after_last_pooling + 2) * 2 + 2


def _initialise_as_keras(layer: nn.Module) -> None:
    nn.init.xavier_uniform_(layer.get_parameter("weight"))
    nn.init.zeros_(layer.get_parameter("bias"))


class _GlorotLazyLinear(nn.LazyLinear):
    """A lazy dense layer, initialised as in Keras once its input size is known."""

    def reset_parameters(self) -> None:
        if self.in_features and not self.has_uninitialized_params():
            _initialise_as_keras(self)
