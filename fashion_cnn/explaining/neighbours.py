"""The training images that a network finds most like an image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.data import ImageDataModule
from fashion_cnn.models import ImageClassifier


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images of each of B images, the nearest first.

    images `(B, K, C, H, W)` uint8, targets `(B, K)`, indices `(B, K)` positions in the training data, similarity
    `(B, K)`: cosine of the embeddings.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    similarity: Tensor


@torch.inference_mode()
def nearest_training_images(module: ImageClassifier, data: ImageDataModule, images: Tensor, most: int) -> Neighbours:
    """The `most` training images nearest to each of images `(B, C, H, W)` uint8, by the angle of their embeddings."""
    split = data.train_split
    wanted = _directions(module, data, images)
    catalogue = torch.cat([_directions(module, data, part) for part in split.images.split(data.eval_batch_size)])
    similarity, places = (wanted @ catalogue.T).topk(min(most, len(split)), dim=1)
    return Neighbours(split.images[places], split.targets[places], split.indices[places], similarity)


def _directions(module: ImageClassifier, data: ImageDataModule, images: Tensor) -> Tensor:
    return functional.normalize(module.embed(data.normalise(images)).float(), dim=1)
