"""Classes of picture files with calibrated probabilities, as a run's network sees them."""

import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import NetworkOutput, TrainedNetwork
from fashion_cnn.metrics.calibration import Calibration, calibrate
from fashion_cnn.metrics.predictions import Predictions, read_predictions
from fashion_cnn.pictures import UnreadablePictureError, read_pictures
from fashion_cnn.runs import Run

NONE_OF_THESE = "none of these"
# Of fewer validation images, the prior of the temperature says as much as they do.
_FEW_VALIDATION_IMAGES = 30


@dataclass(frozen=True)
class Answer:
    """What a network says of one file.

    classes: the likeliest with their probabilities, the likeliest first. none_of_these: whether even that one is too
    unlikely to be named. taught: the concepts that it was taught and recognises here, with their scores, the best first
    (see `Concept.scores`). error: why the file could not be read; then there are no classes.
    """

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    none_of_these: bool = False
    taught: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    @property
    def said(self) -> str | None:
        """The concept or the class, or that it is none of these; None of a file that could not be read."""
        if self.error is not None:
            return None
        if self.taught:
            return self.taught[0][0]
        return NONE_OF_THESE if self.none_of_these else self.classes[0][0]


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
                pictures = {path: picture for path, picture in batch if isinstance(picture, Tensor)}
                said = {}
                if pictures:
                    seen = self.network.outputs(torch.stack(list(pictures.values())))
                    said = dict(zip(pictures, self.said(seen, list(pictures), top_k=top_k), strict=True))
                for path, picture in batch:
                    if isinstance(picture, UnreadablePictureError):
                        yield Answer(path, error=str(picture))
                    else:
                        yield said[path]

    def said(self, seen: NetworkOutput, paths: Sequence[Path], *, top_k: int = 3) -> Iterator[Answer]:
        """What is on each picture that the network has looked at, with its `top_k` likeliest classes."""
        # Of classes that are as likely, which bfloat16 makes common, the first comes first, as accuracy counts them.
        likeliest = self.calibration.probabilities(seen.logits).sort(dim=1, descending=True, stable=True)
        shares, labels = likeliest.values[:, :top_k].tolist(), likeliest.indices[:, :top_k].tolist()
        for path, best, numbers, taught in zip(paths, shares, labels, self.taught(seen.embeddings), strict=True):
            classes = tuple(zip((self.network.class_names[label] for label in numbers), best, strict=True))
            unsure = classes[0][1] < self.calibration.threshold
            yield Answer(path, classes, none_of_these=unsure, taught=tuple(taught))


def calibration_of(run: Run, *, reject: float, flip_average: bool = False) -> tuple[Calibration, str | None]:
    """The run's calibration, and what people are to know of it, if anything, in a sentence.

    reject: as in `calibrate`. flip_average: as in `validation_predictions`.
    """
    validation = validation_predictions(run, flip_average=flip_average)
    if validation is None:
        return Calibration(), (
            f"{run.path} holds no predictions of validation images: the probabilities are not calibrated, and nothing "
            "is rejected."
        )
    remark = None
    if len(validation) < _FEW_VALIDATION_IMAGES:
        remark = (
            f"{run.path} kept only {len(validation)} validation images: the probabilities are hardly calibrated, and "
            "what is none of these is a guess."
        )
    return calibrate(validation, reject=reject), remark


def validation_predictions(run: Run, *, flip_average: bool = False) -> Predictions | None:
    """What the run's best weights said of its validation images; None where it did not keep that, or had none.

    flip_average: in the mean over an image and its mirror image, where the run kept that too.
    Raises UserError where it cannot be read.
    """
    try:
        stored = read_predictions(run.predictions_file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error) as error:
        raise UserError(
            f"{run.predictions_file} is damaged ({error}): without that file the run predicts too, uncalibrated."
        ) from error
    single = stored.get("best.val")
    return stored.get("best.val_flip", single) if flip_average else single
