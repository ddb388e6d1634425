"""A run's network with all that it takes to answer pictures."""

import zlib
from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import torch
from hydra.utils import instantiate
from torch import Tensor

from fashion_cnn.analysis.predictions import Predictions, read_predictions
from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.temperature import Calibration
from fashion_cnn.pictures import Preparation, UnreadablePictureError, read_pictures
from fashion_cnn.pictures.preparation import Invert
from fashion_cnn.prediction.answers import Answer
from fashion_cnn.runs import Run
from fashion_cnn.training.hardware import device_for, precision_context
from fashion_cnn.training.weights import load_classifier


class Predictor:
    """Answers pictures as the run's network was measured: same weights, precision and batches. No data set is needed.

    calibration: how logits become probabilities, such as `calibrate(validation_predictions(run))`.
    flip_average: answer by the mean of the logits of a picture and of its mirror image.
    invert: see `Preparation`.
    Raises UserError where the run's weights cannot be read.
    """

    def __init__(
        self,
        run: Run,
        *,
        calibration: Calibration | None = None,
        flip_average: bool = False,
        invert: Invert = "auto",
    ) -> None:
        config = run.config()
        # It knows the classes and the normalisation without reading an image.
        data = instantiate(config.data, _convert_="all")
        assert isinstance(data, ImageDataModule)
        self.class_names = tuple(data.class_names)
        self.preparation = Preparation(data.image_shape, cut_out=data.cut_out, invert=invert)
        self.calibration = calibration or Calibration()
        self.flip_average = flip_average
        self._data = data
        self._accelerator, self._precision = config.trainer.accelerator, config.trainer.precision
        self._module = load_classifier(run).to(device_for(self._accelerator))

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """The logits `(N, num_classes)` of prepared pictures `(N, C, H, W)` uint8, as float32 on the CPU."""
        parts = []
        with precision_context(self._precision, self._accelerator):
            for batch in images.split(self._data.eval_batch_size):
                normalised = self._data.normalise(batch.to(self._module.device))
                logits = self._module(normalised).float()
                if self.flip_average:
                    logits = (logits + self._module(normalised.flip(-1)).float()) / 2
                parts.append(logits.cpu())
        return torch.cat(parts)

    def answers(self, paths: Iterable[Path], *, top_k: int = 3) -> Generator[Answer]:
        """What is on each picture, with its `top_k` likeliest classes, in the given order, batch by batch."""
        with closing(read_pictures(paths, self.preparation)) as read:
            while batch := list(islice(read, self._data.eval_batch_size)):
                pictures = [picture for _, picture in batch if isinstance(picture, Tensor)]
                known = iter(self.calibration.probabilities(self.logits(torch.stack(pictures))) if pictures else ())
                for path, picture in batch:
                    if isinstance(picture, UnreadablePictureError):
                        yield Answer(path, error=str(picture))
                    else:
                        yield self._answer(path, next(known), top_k)

    def _answer(self, path: Path, probabilities: Tensor, top_k: int) -> Answer:
        # Of classes that are as likely, which bfloat16 makes common, the first comes first, as accuracy counts them.
        likeliest = probabilities.sort(descending=True, stable=True)
        names = (self.class_names[label] for label in likeliest.indices[:top_k].tolist())
        classes = tuple(zip(names, likeliest.values[:top_k].tolist(), strict=True))
        return Answer(path, classes, none_of_these=classes[0][1] < self.calibration.threshold)


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
