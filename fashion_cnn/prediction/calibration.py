"""How to read the logits of a run's network, by what the run kept of its validation images."""

import zlib
from zipfile import BadZipFile

from fashion_cnn.analysis.predictions import Predictions, read_predictions
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.temperature import Calibration, calibrate
from fashion_cnn.runs import Run

# Of fewer validation images, the prior of the temperature says as much as they do.
_FEW = 30


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
    if len(validation) < _FEW:
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
