"""The network as it is deployed: uint8 images in, probabilities out."""

from torch import Tensor, nn

from fashion_cnn.data import ImageDataModule
from fashion_cnn.models import ImageClassifier


class Deployed(nn.Module):
    """Normalisation, network and temperature in one.

    Images `(B, C, H, W)` uint8 in. Out, all float32: logits and probabilities at `temperature`, `(B, num_classes)`, and
    the embedding `(B, D)` that the classifier sees.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, module: ImageClassifier, data: ImageDataModule, temperature: float) -> None:
        super().__init__()
        self.network = module.network
        self.temperature = temperature
        self.register_buffer("mean", data.pixel_mean.clone())
        self.register_buffer("scale", data.pixel_scale.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normalised = (images.float() - self.mean) * self.scale
        embedding = self.network.features(normalised)  # type: ignore[operator]
        logits = self.network.classifier(embedding)  # type: ignore[operator]
        return logits, (logits / self.temperature).softmax(dim=1), embedding

    def logits(self, images: Tensor) -> Tensor:
        """The logits alone."""
        logits: Tensor = self(images)[0]
        return logits


OUTPUTS = ("logits", "probabilities", "embedding")
