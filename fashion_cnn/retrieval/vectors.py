"""Search vectors: the embedding of a picture, joined with the class probabilities of the network."""

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import EmbeddingNetwork, NetworkOutput, TrainedNetwork
from fashion_cnn.inference.pretrained import PretrainedNetwork, check_settings
from fashion_cnn.retrieval.catalogue import CatalogueMetadata
from fashion_cnn.runs import Run


def search_vectors(output: NetworkOutput, class_weight: float) -> Tensor:
    """Return the unit vectors `(N, D)` of products.

    Up to a constant factor per query, their cosine with a query vector (`to_query`) is `1 - class_weight` times the
    cosine of the embeddings plus `class_weight` times the probability that both are of the same class. The last
    component, the uncertainty of the network, fills the length up to 1; query vectors have 0 there.

    Args:
        output: logits `(N, num_classes)` and unit embeddings `(N, E)`.
        class_weight: weight of the classes in [0, 1]; 0 returns the embeddings.
    """
    if not class_weight:
        return output.embeddings
    probabilities = output.logits.softmax(dim=1)
    uncertainty = (1 - probabilities.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
    classes = torch.cat([probabilities, uncertainty], dim=1)
    return torch.cat([(1 - class_weight) ** 0.5 * output.embeddings, class_weight**0.5 * classes], dim=1)


def to_query(vectors: Tensor, class_weight: float) -> Tensor:
    """Turn search vectors `(…, D)`, or weighted sums of them, into query vectors of the same shape."""
    if not class_weight:
        return vectors
    return torch.cat([vectors[..., :-1], torch.zeros_like(vectors[..., -1:])], dim=-1)


def vector_dimensions(network: EmbeddingNetwork, class_weight: float) -> int:
    """Return the length D of the network's search vectors."""
    return network.dimensions + (len(network.class_names) + 1 if class_weight else 0)


def embedding_to_search_vector(direction: Tensor, dimensions: int) -> Tensor:
    """Pad a direction of embeddings `(E,)` to a search vector `(dimensions,)` without class probabilities."""
    return functional.pad(direction, (0, dimensions - len(direction)))


def load_network(run: Run, metadata: CatalogueMetadata) -> EmbeddingNetwork:
    """Load the run's network, or the pretrained one, with the settings that made the vectors of a catalogue.

    Raises:
        UserError: if it cannot be read, or this version makes other vectors.
    """
    if metadata.pretrained:
        if run.config_file.exists():
            raise UserError(
                f"The catalogue was indexed with embedding=pretrained, which has no run: omit run={run.path}."
            )
        check_settings(metadata.pretrained, str(run.path))
        return PretrainedNetwork(run, metadata.pretrained, flip_average=metadata.flip_average)
    return TrainedNetwork(run, flip_average=metadata.flip_average, invert=metadata.invert)
