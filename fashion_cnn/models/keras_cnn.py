"""The plain Keras notebook CNN that this project starts from."""

from torch import Tensor, nn

from fashion_cnn.models.layers import Dropout


class KerasCNN(nn.Module):
    """Unpadded 3x3 convolutions of 32, 64 and 128 channels, pooling, dropout and a dense layer.

    Images `(B, C, H, W)` in, logits `(B, num_classes)` out; 241,546 parameters on 28 x 28 grey
    images of ten classes. The dense layer takes its input size from the first batch. Weights start as Keras starts
    them: Glorot and Bengio's uniform distribution, 2010, and biases at zero.
    """

    def __init__(self, *, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3),
            # Pooling before the activation gives the same numbers, from a quarter of the work.
            nn.MaxPool2d(2),
            nn.ReLU(),
            Dropout(0.25),
            nn.Conv2d(32, 64, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            Dropout(0.25),
            nn.Conv2d(64, 128, 3),
            nn.ReLU(),
            Dropout(0.4),
            nn.Flatten(),
            _GlorotLazyLinear(128),
            nn.ReLU(),
        )
        self.dropout = Dropout(0.3)
        self.classifier = nn.Linear(128, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) or layer is self.classifier:
                _start_as_keras(layer)

    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees: `(B, 128)`."""
        height, width = (_seen_of(side) for side in images.shape[2:])
        return self.trunk(images[..., :height, :width])

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.features(images)))


def _seen_of(side: int) -> int:
    """How much of an image's side reaches the classifier: the poolings leave out a last row that has no partner.

    Without it the numbers are the same, and the convolutions do a sixth less.
    """
    after_last_pooling = ((side - 2) // 2 - 2) // 2
    return (2 * after_last_pooling + 2) * 2 + 2


def _start_as_keras(layer: nn.Module) -> None:
    nn.init.xavier_uniform_(layer.get_parameter("weight"))
    nn.init.zeros_(layer.get_parameter("bias"))


class _GlorotLazyLinear(nn.LazyLinear):
    """A dense layer that starts as Keras starts it, once it knows its size."""

    def reset_parameters(self) -> None:
        if self.in_features and not self.has_uninitialized_params():
            _start_as_keras(self)
