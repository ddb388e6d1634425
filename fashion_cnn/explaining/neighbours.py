"""The training images that a network finds most like an image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.data import ImageDataModule
from fashion_cnn.models import ImageClassifier
from fashion_cnn.progress_bar import progress_bar


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


class TrainingImages:
    """The images that a network was trained on, by the direction of their embeddings."""

    def __init__(self, module: ImageClassifier, data: ImageDataModule) -> None:
        self._module, self._data = module, data
        split = data.train_split
        batches = split.indices.split(data.eval_batch_size)
        directions = []
        with progress_bar("training images") as progress:
            for done, batch in enumerate(batches, start=1):
                directions.append(self._directions(split.images_at(batch)))
                progress(done, len(batches))
        self._catalogue = torch.cat(directions)

    @torch.inference_mode()
    def nearest(self, images: Tensor, most: int) -> Neighbours:
        """The `most` training images nearest to each of images `(B, C, H, W)` uint8, by the angle between them."""
        split = self._data.train_split
        similarity, places = (self._directions(images) @ self._catalogue.T).topk(min(most, len(split)), dim=1)
        indices = split.indices[places]
        return Neighbours(split.images_at(indices), split.targets[places], indices, similarity)

    @torch.inference_mode()
    def _directions(self, images: Tensor) -> Tensor:
        return functional.normalize(self._module.embed(self._data.normalise(images)).float(), dim=1)
