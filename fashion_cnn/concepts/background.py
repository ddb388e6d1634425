"""What a network sees all the time: the ground that a concept has to stand out from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fashion_cnn.data import ImageDataModule
from fashion_cnn.prediction import TrainedNetwork

# Of the training images; so many more for the thresholds.
_IMAGES, _HELD_BACK = 4000, 2000
# How much of their mean variance is added to all directions: a direction that hardly varies is not trusted alone. Of
# 0.02 to 0.4 the best on training images (docs/concepts.md).
_SHRINKAGE = 0.4


@dataclass(frozen=True)
class Background:
    """Whitens embeddings `(N, D)`: over the images that the network knows, directions vary alike, but for those that
    hardly vary, which vary less (shrinkage); the standard deviation is under 1 along each.

    In that space an example that the network has no class for is far from all that it knows, along directions that
    hardly ever vary (linear discriminant analysis: Fisher, 1936, with one class that is everything).

    mean `(D,)`, whitener `(D, D)`. others `(M, D)`: further known images, whitened, for thresholds.
    """

    mean: Tensor
    whitener: Tensor
    others: Tensor

    def whiten(self, embeddings: Tensor) -> Tensor:
        """Embeddings `(N, D)` in the whitened space."""
        return (embeddings - self.mean) @ self.whitener


def background_of(network: TrainedNetwork, data: ImageDataModule) -> Background:
    """The background of a network: what it makes of a sample of its training images."""
    data.prepare_data()
    data.setup("fit")
    split = data.train_split
    # A prefix of the training images is a stratified sample of them.
    images = split.images_at(split.indices[: _IMAGES + _HELD_BACK])
    embeddings = network.look(images).embeddings
    held_back = min(_HELD_BACK, len(embeddings) // 3)
    known, others = embeddings[:-held_back], embeddings[-held_back:]
    mean = known.mean(dim=0)
    centred = (known - mean).double()
    covariance = centred.T @ centred / len(known)
    covariance += _SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(mean), dtype=torch.float64)
    variances, directions = torch.linalg.eigh(covariance)
    whitener = (directions / variances.sqrt() @ directions.T).float()
    return Background(mean, whitener, (others - mean) @ whitener)
