"""What a network's vectors are held against: raw pixels, their principal components, an untrained network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.retrieval.ranking import Metric

# Pixels held as floats at once while the components are fitted.
_BLOCK = 5000


@dataclass(frozen=True)
class Yardstick:
    """vectors: of images `(N, C, H, W)` uint8, `(N, D)` float32; of length 1 where the metric is the cosine. as_query:
    of vectors, what is searched by; None for themselves.
    """

    name: str
    vectors: Callable[[Tensor], Tensor]
    metric: Metric
    as_query: Callable[[Tensor], Tensor] | None = None

    def queries(self, images: Tensor) -> Tensor:
        """What the products like images `(N, C, H, W)` are searched by, `(N, D)`."""
        vectors = self.vectors(images)
        return self.as_query(vectors) if self.as_query else vectors


def pixel_directions(images: Tensor) -> Tensor:
    """The pixels as they are, as vectors of length 1."""
    return functional.normalize(pixels(images), dim=1)


def pixels(images: Tensor) -> Tensor:
    """The pixels, 0 to 1."""
    return images.flatten(1) / 255


@dataclass(frozen=True)
class PrincipalComponents:
    """The first `D` principal components of pixels, as directions: the cosine of centred images finds more of their
    class than the distance does. mean `(P,)`, components `(P, D)`, each of length 1.
    """

    mean: Tensor
    components: Tensor

    @classmethod
    def of(cls, images: Tensor, dimensions: int) -> "PrincipalComponents":
        """Those of images `(N, C, H, W)` uint8; as many as there are pixels, at most."""
        count = images[0].numel()
        total, products = torch.zeros(count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64)
        for block in images.split(_BLOCK):
            flat = pixels(block)
            total += flat.sum(dim=0, dtype=torch.float64)
            products += flat.T @ flat
        mean = total / len(images)
        covariance = products / len(images) - torch.outer(mean, mean)
        # In ascending order of their share.
        components = torch.linalg.eigh(covariance).eigenvectors[:, -dimensions:].flip(1)
        return cls(mean.float(), components.float().contiguous())

    def __call__(self, images: Tensor) -> Tensor:
        """Which way images lie from the mean, `(N, D)`, of length 1."""
        along = torch.cat([(pixels(block) - self.mean) @ self.components for block in images.split(_BLOCK)])
        return functional.normalize(along, dim=1)
