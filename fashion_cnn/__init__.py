"""Fashion image recognition with PyTorch Lightning: training, overfitting analysis and product search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fashion_cnn.inference.predictor import TrainedClassifier

__version__ = "0.1.0"


def load(
    run: str | Path = "latest",
    runs_dir: str | Path = "runs",
    *,
    flip_average: bool = False,
    trust: str | Iterable[str] | None = None,
) -> TrainedClassifier:
    """Load the trained network of a run, with the weights of the best epoch on validation.

    Args:
        run: directory of the run, or `latest` for the newest finished run below `runs_dir`; or the name of a network
            that comes with the package, such as `small`, unless a folder has this name.
        runs_dir: folder of the runs.
        flip_average: average the outputs of each image and its mirror image.
        trust: packages whose classes a run may name from now on, such as the one that defines your own network.

    Returns:
        An object with `predict`, `predict_proba` and `embed` for NumPy arrays, tensors and pictures, which it
        normalises itself. Its attribute `module` is the bare LightningModule.

    Raises:
        UserError: there is no such run, its checkpoint cannot be read, or it names a class of another package.
    """
    from fashion_cnn.inference.predictor import TrainedClassifier
    from fashion_cnn.runs import find_run
    from fashion_cnn.runs.pretrained import PREFIX, pretrained_names, pretrained_run
    from fashion_cnn.runs.trust import trust_packages

    trust_packages(trust)
    name = str(run).removeprefix(PREFIX)
    if str(run).startswith(PREFIX) or (name in pretrained_names() and not Path(run).exists()):
        return TrainedClassifier(pretrained_run(name), flip_average=flip_average)
    return TrainedClassifier(find_run(run, Path(runs_dir)), flip_average=flip_average)
