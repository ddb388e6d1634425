"""The vectors that products are found by: what a picture looks like, and what the network takes it for."""

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.prediction import Seen, TrainedNetwork
from fashion_cnn.retrieval.catalogue import About
from fashion_cnn.runs import Run

# Of the softmax: networks that learn from softened or mixed labels are surer than their probabilities say. Of 0.1 to 1
# the best on validation, by little (docs/search.md).
_TEMPERATURE = 0.2


def search_vectors(seen: Seen, class_weight: float) -> Tensor:
    """Unit vectors `(N, D)`. The cosine of two of them is `1 - class_weight` times that of the embeddings, and
    `class_weight` (0 to 1) times how alike the probabilities of their classes are, 0 to 1 (the coefficient of
    Bhattacharyya, 1943: the sum of the roots of their products).
    """
    if not class_weight:
        return seen.embeddings
    probabilities = functional.softmax(seen.logits / _TEMPERATURE, dim=1)
    return torch.cat([(1 - class_weight) ** 0.5 * seen.embeddings, (class_weight * probabilities).sqrt()], dim=1)


def network_of(run: Run, about: About) -> TrainedNetwork:
    """The run's network, looking at pictures as it did for a catalogue."""
    return TrainedNetwork(run, flip_average=about.flip_average, invert=about.invert)


def dimensions_of(network: TrainedNetwork, class_weight: float) -> int:
    """D of the network's search vectors."""
    return network.dimensions + (len(network.class_names) if class_weight else 0)


def as_search_vector(direction: Tensor, dimensions: int) -> Tensor:
    """A direction of embeddings, which says nothing of classes, among search vectors of so many dimensions."""
    return functional.pad(direction, (0, dimensions - len(direction)))
