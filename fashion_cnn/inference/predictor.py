"""Classification of picture files with calibrated probabilities."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import NetworkOutput, TrainedNetwork
from fashion_cnn.metrics.calibration import Calibration, calibrate
from fashion_cnn.metrics.predictions import Predictions, read_predictions
from fashion_cnn.pictures import UnreadablePictureError, read_pictures
from fashion_cnn.runs import Run

NONE_OF_THESE = "none of these"
# With fewer validation images, the prior of the temperature outweighs them.
_FEW_VALIDATION_IMAGES = 30


@dataclass(frozen=True)
class Prediction:
    """Prediction for a picture file.

    Attributes:
        path: the file.
        classes: the `top_k` classes with their probabilities, the most probable first; empty if there is an error.
        none_of_these: whether even the first class is below the rejection threshold.
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


class Predictor:
    """Classifies picture files with a run's network.

    Args:
        network: the network.
        calibration: temperature and rejection threshold, such as those of `load_calibration`; None for neither.
        recognise: returns the recognised concepts and their scores for each of N embeddings `(N, D)`.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        calibration: Calibration | None = None,
        recognise: Callable[[Tensor], list[list[tuple[str, float]]]] = lambda embeddings: [[] for _ in embeddings],
    ) -> None:
        self.network = network
        self.calibration = calibration or Calibration()
        self.recognise = recognise

    def predict(self, paths: Iterable[Path], *, top_k: int = 3) -> Generator[Prediction]:
        """Yield the prediction for each file with its `top_k` classes, in the given order, batch by batch."""
        with closing(read_pictures(paths, self.network.preparation)) as pictures:
            while batch := list(islice(pictures, self.network.batch_size)):
                readable = [(path, picture) for path, picture in batch if isinstance(picture, Tensor)]
                predictions: Iterator[Prediction] = iter(())
                if readable:
                    outputs = self.network.outputs(torch.stack([picture for _, picture in readable]))
                    predictions = self.classify(outputs, [path for path, _ in readable], top_k=top_k)
                for path, picture in batch:
                    if isinstance(picture, UnreadablePictureError):
                        yield Prediction(path, error=str(picture))
                    else:
                        yield next(predictions)

    def classify(self, outputs: NetworkOutput, paths: Sequence[Path], *, top_k: int = 3) -> Iterator[Prediction]:
        """Yield the predictions for N files from the network's outputs.

        Args:
            outputs: logits and embeddings of the N pictures.
            paths: the N files.
            top_k: number of classes to return.
        """
        # Stable: of equally probable classes the first comes first, as in the accuracy.
        ranking = self.calibration.probabilities(outputs.logits).sort(dim=1, descending=True, stable=True)
        rows = zip(
            paths,
            ranking.indices[:, :top_k].tolist(),
            ranking.values[:, :top_k].tolist(),
            self.recognise(outputs.embeddings),
            strict=True,
        )
        for path, labels, probabilities, concepts in rows:
            classes = tuple(zip((self.network.class_names[label] for label in labels), probabilities, strict=True))
            rejected = probabilities[0] < self.calibration.threshold
            yield Prediction(path, classes, none_of_these=rejected, concepts=tuple(concepts))


def load_calibration(run: Run, *, reject: float, flip_average: bool = False) -> tuple[Calibration, str | None]:
    """Fit the calibration of a run on the logits that it stored for its validation images.

    Args:
        run: the run.
        reject: see `calibrate`.
        flip_average: see `read_validation_predictions`.

    Returns:
        The calibration, and a warning if there are few validation images or none.

    Raises:
        UserError: if the logits cannot be read.
    """
    predictions = read_validation_predictions(run, flip_average=flip_average)
    if predictions is None:
        return Calibration(), (
            f"{run.path} holds no predictions of validation images: the probabilities are not calibrated, and nothing "
            "is rejected."
        )
    warning = None
    if len(predictions) < _FEW_VALIDATION_IMAGES:
        warning = (
            f"{run.path} has only {len(predictions)} validation images: probabilities and rejections are poorly "
            "calibrated."
        )
    return calibrate(predictions, reject=reject), warning


def read_validation_predictions(run: Run, *, flip_average: bool = False) -> Predictions | None:
    """Read the logits that the run's best weights gave for its validation images.

    Args:
        run: the run.
        flip_average: take the logits averaged over each image and its mirror image, if the run stored them.

    Returns:
        The logits; None if the run stored none.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        stored = read_predictions(run.predictions_file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{run.predictions_file} is damaged ({error}): delete it to predict without calibration."
        ) from error
    single = stored.get("best.val")
    return stored.get("best.val_flip", single) if flip_average else single
