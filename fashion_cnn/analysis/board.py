"""What TensorBoard shows of a finished run, beside the curves that were written as it trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fashion_cnn.analysis.gap import figure_name
from fashion_cnn.analysis.predictions import Predictions
from fashion_cnn.analysis.settings import settings

_SUFFIX = ".analysis"
# The figures that a sweep is sorted and plotted by. Never of the test set: nothing is chosen by that.
_FINAL = ("val/accuracy", "val/loss", "gap/accuracy", "gap/loss")


class Board:
    """A writer beside the training's own, in place of what an earlier one left in `directory`."""

    def __init__(self, directory: Path) -> None:
        for stale in directory.glob(f"events.out.tfevents.*{_SUFFIX}"):
            stale.unlink()
        self._writer = SummaryWriter(str(directory), filename_suffix=_SUFFIX)

    def add_picture(self, name: str, path: Path, step: int) -> None:
        """A figure that was saved as a PNG."""
        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def add_precision_recall(self, predictions: Predictions, class_names: Sequence[str], step: int) -> None:
        """A precision-recall curve for each class, that class against the rest."""
        for label, name in enumerate(class_names):
            self._writer.add_pr_curve(
                f"pr_curve/{figure_name(name)}",
                predictions.targets == label,
                predictions.probabilities[:, label],
                step,
            )

    def add_text(self, name: str, markdown: str, step: int) -> None:
        self._writer.add_text(name, markdown, step)

    def add_settings(self, config: Any, results: Mapping[str, Any]) -> None:
        """The run's settings with its final figures, for the HParams tab: written once, of runs that ended well."""
        chosen = settings(config) | {"parameters": results["parameters"]}
        final = {f"final/{name.replace('/', '_')}": results[name] for name in _FINAL if name in results}

        file_writer = self._writer._get_file_writer()
        for summary in hparams(chosen, final):
            file_writer.add_summary(summary)
        for name, value in final.items():
            self._writer.add_scalar(name, value)

    def close(self) -> None:
        self._writer.close()
