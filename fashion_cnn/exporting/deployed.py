"""The network as it is deployed: uint8 images in, probabilities out."""

import torch
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


OUTPUTS = ("logits", "probabilities", "embedding")


@torch.inference_mode()
def logits_of(deployed: Deployed, images: Tensor, batch: int) -> Tensor:
    """Logits `(N, num_classes)` of images `(N, C, H, W)` uint8, so many at a time."""
    return torch.cat([deployed(part)[0] for part in images.split(batch)])
