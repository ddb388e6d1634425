"""Fashion image recognition with PyTorch Lightning: training, overfitting analysis and product search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fashion_cnn.models import ImageClassifier

__version__ = "0.1.0"


def load(run: str | Path = "latest", runs_dir: str | Path = "runs") -> ImageClassifier:
    """Load the trained network of a run, with the weights of the best epoch on validation.

    Args:
        run: directory of the run, or `latest` for the newest finished run below `runs_dir`.
        runs_dir: folder of the runs.

    Returns:
        The network on the CPU, in eval mode.

    Raises:
        UserError: there is no such run, or its checkpoint cannot be read.
    """
    from fashion_cnn.inference import network
    from fashion_cnn.runs import find_run

    return network.load(find_run(run, Path(runs_dir)))
