"""Learning from what trained networks answer, beside the labels."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import load
from fashion_cnn.models.ensemble import LogitAverage
from fashion_cnn.runs import Run, display_path, find_finished_run, list_runs
from fashion_cnn.training.leakage import find_leakage

# What two networks must share, for the answers of one to be a lesson for the other.
_SEEN = ("_target_", "dataset", "mean", "std", "left_out")
_SEEN_IN_A_FOLDER = tuple(f"detected.{name}" for name in ("class_names", "channels", "image_size", "mean", "std"))


class Distillation:
    """Probabilities to be learned, blended of the labels' and of the teachers', who look at the same images.

    teachers: directories of runs, which `find_teachers` gives; the mean of their logits answers. share: of the target
    that is theirs, above 0 and up to 1. Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015
    (arXiv 1503.02531), at temperature 1; that teachers see the student's own augmented and mixed images is from Beyer
    et al., 2022 (arXiv 2106.05237).

    The teachers are loaded when they are first asked: a student answers without them.
    """

    def __init__(self, teachers: Sequence[str] | None, share: float) -> None:
        if not 0 < share <= 1:
            raise UserError(f"distillation.share={share} is not possible: give a number above 0, up to 1.")
        self.teachers = list(teachers or ())
        self.share = share
        self._network: LogitAverage | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, probabilities: Tensor) -> Tensor:
        """The blend `(B, num_classes)` for normalised images `(B, C, H, W)` with the labels' `probabilities`."""
        if self._network is None:
            # Networks draw their first weights when they are built: training draws the same whenever this happens.
            with torch.random.fork_rng(devices=[]):
                loaded = LogitAverage([load(Run(Path(path))).network for path in self.teachers])
            self._network = loaded.eval().to(images.device).to(memory_format=torch.channels_last)
        answers = self._network(images).float().softmax(dim=1)
        return probabilities.lerp(answers, self.share)


def find_teachers(config: DictConfig) -> list[str]:
    """The absolute paths of the runs that `config.distillation` names.

    Raises UserError where there is none, one is not finished or cannot be read, or learned from other images.
    """
    named = config.distillation.teachers
    if not named:
        raise UserError(
            "distillation.teachers names no run: give a finished run's directory, a folder of them, or a list."
        )
    references = [named] if isinstance(named, str) else list(named)
    paths = [Path(reference).expanduser() for reference in references]
    teachers = [teacher for path in paths for teacher in _named(path, Path(config.runs_dir))]
    for teacher in teachers:
        _check(teacher, config.data)
    return [str(teacher.path.resolve()) for teacher in teachers]


def _named(path: Path, runs_dir: Path) -> list[Run]:
    """A run, or the finished ones of a folder."""
    if Run(path).config_file.exists():
        return [find_finished_run(path, runs_dir)]
    finished = list_runs(path, "finished")
    if not finished:
        raise UserError(
            f"distillation.teachers={path} holds no finished run: give the directory of one, or a folder of such."
        )
    print(f"Taught by {', '.join(str(display_path(run.path)) for run in finished)}", file=sys.stderr)
    return finished


def _check(teacher: Run, ours: DictConfig) -> None:
    theirs = teacher.config().data
    for key in (*_SEEN, *_SEEN_IN_A_FOLDER):
        if (asked := OmegaConf.select(ours, key)) != (has := OmegaConf.select(theirs, key)):
            raise UserError(
                f"distillation.teachers={teacher.path} learned from other images (data.{key} is {has} there, and "
                f"{asked} here): a teacher knows the student's classes, and sees images as the student does."
            )
    if difference := find_leakage(theirs, ours):
        raise UserError(
            f"distillation.teachers={teacher.path} learned from {difference}: say the same, so that they stay unseen."
        )
    load(teacher)
