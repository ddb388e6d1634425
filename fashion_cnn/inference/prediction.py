"""Predicted classes of pictures from the outputs of a network, without torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

NONE_OF_THESE = "none of these"


@dataclass(frozen=True)
class Prediction:
    """Prediction for a picture file.

    Attributes:
        path: the file.
        classes: the `top_k` classes with their probabilities, the most probable first; empty if there is an error.
        none_of_these: whether even the first class is below the rejection threshold, or a needed concept is missing.
        concepts: recognised concepts with their scores, the best first (see `Concept.scores`).
        error: why the file could not be read.
    """

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    none_of_these: bool = False
    concepts: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    @property
    def label(self) -> str | None:
        """The best concept, the most probable class, or NONE_OF_THESE; None if the file could not be read."""
        if self.error is not None:
            return None
        if self.concepts:
            return self.concepts[0][0]
        return NONE_OF_THESE if self.none_of_these else self.classes[0][0]


class PictureVectors(NamedTuple):
    """Output of a network for N pictures, as arrays.

    Attributes:
        logits: `(N, num_classes)`.
        embeddings: unit vectors `(N, E)`.
    """

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32]


def softmax(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the probabilities `(N, C)` of logits `(N, C)` divided by a temperature."""
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def predictions_of(
    probabilities: NDArray[np.float64],
    paths: Sequence[Path],
    *,
    class_names: Sequence[str],
    concepts: Sequence[Sequence[tuple[str, float]]],
    threshold: float = 0.0,
    needs_concept: bool = False,
    top_k: int = 3,
) -> Iterator[Prediction]:
    """Yield the predictions for N files.

    Args:
        probabilities: probability of each class, `(N, C)`.
        paths: the N files.
        class_names: names of the C classes.
        concepts: recognised concepts of each file with their scores.
        threshold: a file whose highest probability is below it is rejected as none of the classes.
        needs_concept: a file without a recognised concept is rejected, too.
        top_k: number of classes to return.
    """
    # A stable sort puts the first of equally probable classes first, as `argmax` does for the accuracy.
    ranking = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    best = np.take_along_axis(probabilities, ranking, axis=1)
    for path, labels, values, names in zip(paths, ranking.tolist(), best.tolist(), concepts, strict=True):
        classes = tuple(zip((class_names[label] for label in labels), values, strict=True))
        rejected = values[0] < threshold or (needs_concept and not names)
        yield Prediction(path, classes, none_of_these=rejected, concepts=tuple(names))
