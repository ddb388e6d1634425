"""What a run's network says of picture files, in probabilities."""

import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor

from fashion_cnn.analysis.predictions import Predictions, read_predictions
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.temperature import Calibration
from fashion_cnn.pictures import UnreadablePictureError, read_pictures
from fashion_cnn.prediction.answers import Answer
from fashion_cnn.prediction.trained import TrainedNetwork
from fashion_cnn.runs import Run


class Predictor:
    """Says what is on pictures, as a run's network sees them.

    calibration: how logits become probabilities, such as `calibrate(validation_predictions(run))`. taught: which of the
    concepts that it was taught are in each of N embeddings `(N, D)`, with their scores.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        calibration: Calibration | None = None,
        taught: Callable[[Tensor], list[list[tuple[str, float]]]] = lambda embeddings: [[] for _ in embeddings],
    ) -> None:
        self.network = network
        self.calibration = calibration or Calibration()
        self.taught = taught

    def answers(self, paths: Iterable[Path], *, top_k: int = 3) -> Generator[Answer]:
        """What is on each picture, with its `top_k` likeliest classes, in the given order, batch by batch."""
        with closing(read_pictures(paths, self.network.preparation)) as read:
            while batch := list(islice(read, self.network.batch_size)):
                pictures = [picture for _, picture in batch if isinstance(picture, Tensor)]
                known = iter(self._known(torch.stack(pictures)) if pictures else ())
                for path, picture in batch:
                    if isinstance(picture, UnreadablePictureError):
                        yield Answer(path, error=str(picture))
                    else:
                        yield self._answer(path, *next(known), top_k)

    def _known(self, images: Tensor) -> Iterator[tuple[Tensor, list[tuple[str, float]]]]:
        """The probabilities of the classes and the concepts of each image."""
        seen = self.network.look(images)
        return zip(self.calibration.probabilities(seen.logits), self.taught(seen.embeddings), strict=True)

    def _answer(self, path: Path, probabilities: Tensor, taught: list[tuple[str, float]], top_k: int) -> Answer:
        # Of classes that are as likely, which bfloat16 makes common, the first comes first, as accuracy counts them.
        likeliest = probabilities.sort(descending=True, stable=True)
        names = (self.network.class_names[label] for label in likeliest.indices[:top_k].tolist())
        classes = tuple(zip(names, likeliest.values[:top_k].tolist(), strict=True))
        unsure = classes[0][1] < self.calibration.threshold
        return Answer(path, classes, none_of_these=unsure, taught=tuple(taught))


def validation_predictions(run: Run) -> Predictions | None:
    """What the run's best weights said of its validation images; None where it did not keep that, or had none.

    Raises UserError where it cannot be read.
    """
    try:
        return read_predictions(run.predictions_file).get("best.val")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error) as error:
        raise UserError(
            f"{run.predictions_file} is damaged ({error}): without that file the run predicts too, uncalibrated."
        ) from error
