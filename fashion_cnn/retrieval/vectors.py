"""The vectors that products are found by: what a picture looks like, and what the network takes it for."""

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.inference.network import NetworkOutput, TrainedNetwork
from fashion_cnn.retrieval.catalogue import CatalogueMetadata
from fashion_cnn.runs import Run


def search_vectors(seen: NetworkOutput, class_weight: float) -> Tensor:
    """Unit vectors `(N, D)` of products.

    Their cosine with a query (`as_query`) is, but for a factor of the query's own, `1 - class_weight` times that of the
    embeddings and `class_weight` (0 to 1) times the probability that both are of the same class. The last number fills
    up the length of 1: it is the network's doubt, which no query looks for.
    """
    if not class_weight:
        return seen.embeddings
    probabilities = seen.logits.softmax(dim=1)
    doubt = (1 - probabilities.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
    classes = torch.cat([probabilities, doubt], dim=1)
    return torch.cat([(1 - class_weight) ** 0.5 * seen.embeddings, class_weight**0.5 * classes], dim=1)


def as_query(vectors: Tensor, class_weight: float) -> Tensor:
    """Vectors of products `(…, D)`, or a sum of such, to search by."""
    if not class_weight:
        return vectors
    doubt = torch.zeros_like(vectors[..., -1:])
    return torch.cat([vectors[..., :-1], doubt], dim=-1)


def load_network(run: Run, about: CatalogueMetadata) -> TrainedNetwork:
    """The run's network, looking at pictures as it did for a catalogue."""
    return TrainedNetwork(run, flip_average=about.flip_average, invert=about.invert)


def vector_dimensions(network: TrainedNetwork, class_weight: float) -> int:
    """D of the network's search vectors."""
    return network.dimensions + (len(network.class_names) + 1 if class_weight else 0)


def embedding_to_search_vector(direction: Tensor, dimensions: int) -> Tensor:
    """A direction of embeddings, which says nothing of classes, among search vectors of so many dimensions."""
    return functional.pad(direction, (0, dimensions - len(direction)))
