"""Search vectors: the embedding of a picture, joined with the class probabilities of the network."""

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fashion_cnn.errors import UserError
from fashion_cnn.inference.onnx_network import ONNX_FILE, OnnxNetwork
from fashion_cnn.inference.prediction import PictureVectors, softmax
from fashion_cnn.pictures import Preparation
from fashion_cnn.pictures.photographs import PretrainedSettings, check_settings
from fashion_cnn.retrieval.catalogue import CatalogueMetadata
from fashion_cnn.runs import Run

if TYPE_CHECKING:
    from fashion_cnn.inference.network import EmbeddingNetwork, NetworkOutput


class SearchNetwork(Protocol):
    """The network of a search, in PyTorch (`EmbeddingNetwork`) or in ONNX (`OnnxNetwork`)."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the logits."""

    @property
    def preparation(self) -> Preparation:
        """Conversion of pictures to its input."""

    @property
    def flip_average(self) -> bool:
        """True if outputs are averaged over each picture and its mirror image."""

    @property
    def pretrained(self) -> PretrainedSettings | None:
        """Settings of its vectors; None for the network of a run."""

    @property
    def measured_columns(self) -> tuple[str, ...]:
        """Names of columns that a catalogue stores beside those of the shop."""

    @property
    def run(self) -> Run:
        """Where what is taught to the network is stored."""

    @property
    def identity(self) -> str:
        """A hash that networks with the same embeddings share."""

    @property
    def dimensions(self) -> int:
        """Length of the embeddings."""

    def embed_pictures(self, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits `(N, num_classes)` and embeddings `(N, E)` of prepared pictures `(N, C, H, W)`."""

    def finds_item(self, image: ArrayLike) -> bool | None:
        """Return whether a prepared picture `(C, H, W)` shows an item; None if that is not known."""

    def measure_columns(self, images: ArrayLike) -> dict[str, list[str]]:
        """Return the values of `measured_columns` of prepared pictures `(N, C, H, W)` uint8."""


def embed(network: SearchNetwork, pictures: ArrayLike) -> PictureVectors:
    """Return the output of a network for prepared pictures `(N, C, H, W)` uint8."""
    return PictureVectors(*network.embed_pictures(np.asarray(pictures)))


def search_vectors(output: "PictureVectors | NetworkOutput", class_weight: float) -> NDArray[np.float32]:
    """Return the unit vectors `(N, D)` of products.

    Up to a constant factor per query, their cosine with a query vector (`to_query`) is `1 - class_weight` times the
    cosine of the embeddings plus `class_weight` times the probability that both are of the same class. The last
    component, the uncertainty of the network, fills the length up to 1; query vectors have 0 there.

    Args:
        output: logits `(N, num_classes)` and unit embeddings `(N, E)`.
        class_weight: weight of the classes in [0, 1]; 0 returns the embeddings.
    """
    vectors = np.asarray(output.embeddings, np.float32)
    if not class_weight:
        return vectors
    probabilities = softmax(output.logits)
    uncertainty = np.sqrt((1 - (probabilities**2).sum(axis=1, keepdims=True)).clip(min=0))
    parts = [(1 - class_weight) ** 0.5 * vectors, class_weight**0.5 * np.hstack([probabilities, uncertainty])]
    joined: NDArray[np.float32] = np.hstack(parts).astype(np.float32)
    return joined


def to_query(vectors: NDArray[np.float32], class_weight: float) -> NDArray[np.float32]:
    """Turn search vectors `(…, D)`, or weighted sums of them, into query vectors of the same shape."""
    if not class_weight:
        return vectors
    queries = vectors.copy()
    queries[..., -1] = 0
    return queries


def vector_dimensions(network: SearchNetwork, class_weight: float) -> int:
    """Return the length D of the network's search vectors."""
    return network.dimensions + (len(network.class_names) + 1 if class_weight else 0)


def embedding_to_search_vector(direction: ArrayLike, dimensions: int) -> NDArray[np.float32]:
    """Pad a direction of embeddings `(E,)` to a search vector `(dimensions,)` without class probabilities."""
    values = np.asarray(direction, np.float32)
    return np.pad(values, (0, dimensions - len(values)))


def load_network(run: Run, metadata: CatalogueMetadata, *, backend: str = "torch") -> SearchNetwork:
    """Load the run's network, or the pretrained one, with the settings that made the vectors of a catalogue.

    Args:
        run: the run, or the folder of the catalogue of a pretrained network.
        metadata: the settings.
        backend: `torch`, or `onnx` for the file that `export embedding=pretrained` wrote into the catalogue's folder.

    Raises:
        UserError: if it cannot be read, or this version makes other vectors.
    """
    if metadata.pretrained and run.config_file.exists():
        raise UserError(f"The catalogue was indexed with embedding=pretrained, which has no run: omit run={run.path}.")
    if metadata.pretrained:
        check_settings(metadata.pretrained, str(run.path))
    if backend == "onnx":
        if not metadata.pretrained:
            raise UserError(
                "backend=onnx needs a catalogue of embedding=pretrained; this one was made by the network of a run: "
                "use backend=torch."
            )
        return OnnxNetwork(run, run.path / ONNX_FILE, metadata.pretrained, flip_average=metadata.flip_average)
    # Only here: the other backend does without torch.
    from fashion_cnn.inference.network import TrainedNetwork
    from fashion_cnn.inference.pretrained import PretrainedNetwork

    if metadata.pretrained:
        return PretrainedNetwork(run, metadata.pretrained, flip_average=metadata.flip_average)
    return TrainedNetwork(run, flip_average=metadata.flip_average, invert=metadata.invert)


def load_mirrored_network(run: Run, metadata: CatalogueMetadata) -> "EmbeddingNetwork":
    """Load the network of a catalogue as concepts use it: embeddings are averaged over mirror images.

    Args:
        run: see `load_network`.
        metadata: see `load_network`.

    Raises:
        UserError: see `load_network`.
    """
    from fashion_cnn.inference.network import EmbeddingNetwork

    network = load_network(run, metadata)
    assert isinstance(network, EmbeddingNetwork)
    return network.with_mirror_images()
