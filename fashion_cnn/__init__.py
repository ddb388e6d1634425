"""Train, study and use a small CNN honestly: fashion image recognition with PyTorch Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fashion_cnn.models import ImageClassifier

__version__ = "0.1.0"


def load(run: str | Path = "latest", runs_dir: str | Path = "runs") -> ImageClassifier:
    """The trained network of a run, in eval mode on the CPU, with the weights that were best on validation.

    run: a run's directory, or `latest` for the newest finished one below `runs_dir`.
    Raises UserError where there is no such run or its checkpoint cannot be read.
    """
    from fashion_cnn.inference import network
    from fashion_cnn.runs import find_run

    return network.load(find_run(run, Path(runs_dir)))
