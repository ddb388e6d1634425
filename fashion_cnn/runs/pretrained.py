"""Trained networks that come with the package: `run=pretrained:NAME` for every command that takes a run.

Each is a run without what only its own training needs, such as the state of its optimizer, and lies in
`fashion_cnn/weights`. Commands write into the run that they use: it is copied below `runs_dir` first.
"""

import filecmp
import shutil
from pathlib import Path

from fashion_cnn.errors import UserError, disk_errors_at
from fashion_cnn.runs.files import temporary_folder
from fashion_cnn.runs.run import Run

PREFIX = "pretrained:"
PACKAGED = Path(__file__).parent.parent / "weights"
_COPIES = "pretrained"


def pretrained_names() -> list[str]:
    """Names of the trained networks that come with the package."""
    return sorted(file.parent.name for file in PACKAGED.glob("*/config.yaml"))


def pretrained_run(name: str, runs_dir: Path | None = None) -> Run:
    """Return a trained network that comes with the package.

    Args:
        name: one of `pretrained_names`.
        runs_dir: folder of runs, where it is copied to `pretrained/NAME` unless it is there; None for the run in the
            package itself, into which nothing may be written.

    Raises:
        UserError: if there is no such network, or the folder of its copy holds something else.
    """
    if name not in pretrained_names():
        names = ", ".join(f"{PREFIX}{known}" for known in pretrained_names())
        raise UserError(f"{PREFIX}{name} does not exist: the trained networks are {names}.", status=2)
    packaged = Run(PACKAGED / name)
    if runs_dir is None:
        return packaged
    copied = Run(runs_dir / _COPIES / name)
    if not copied.path.exists():
        _copy(packaged.path, copied.path)
    elif not _has_same_weights(packaged, copied):
        raise UserError(
            f"{copied.path} is not the network {PREFIX}{name} of this version of fashion_cnn: move that folder away, "
            "or name it as run."
        )
    return copied


def is_copy(run: Run, runs_dir: Path) -> bool:
    """Return whether a run is the copy of a network of the package that `pretrained_run` made in `runs_dir`."""
    return run.path.parent == runs_dir / _COPIES


def _copy(source: Path, target: Path) -> None:
    with disk_errors_at(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target.parent, ".copy-") as partial:
            shutil.copytree(source, partial / target.name)
            try:
                (partial / target.name).rename(target)
            except OSError:
                # Another command copied it in the meantime.
                if not target.exists():
                    raise


def _has_same_weights(packaged: Run, copied: Run) -> bool:
    first, second = (run.best_checkpoint for run in (packaged, copied))
    return second.is_file() and filecmp.cmp(first, second, shallow=False)
