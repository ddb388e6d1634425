"""Knowledge distillation: train on the soft predictions of finished runs beside the labels."""

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

# Options of `data` that teacher and student must share: the classes, and how images are prepared.
_SHARED_OPTIONS = (
    *("_target_", "dataset", "mean", "std", "left_out"),
    *(f"detected.{name}" for name in ("class_names", "channels", "image_size", "mean", "std")),
)


class Distillation:
    """Target probabilities, interpolated between the labels and the teachers' predictions on the same images.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531), at temperature
    1. Teachers see the student's augmented and mixed images, as in Beyer et al., "Knowledge distillation: A good
    teacher is patient and consistent", 2022 (arXiv 2106.05237).

    The teachers are loaded at the first call: loading a trained student does not need them.

    Args:
        teachers: run directories, as `find_teachers` returns them; their logits are averaged.
        share: weight of the teachers' probabilities in the target, in (0, 1].

    Raises:
        UserError: if `share` is out of range.
    """

    def __init__(self, teachers: Sequence[str] | None, share: float) -> None:
        if not 0 < share <= 1:
            raise UserError(f"distillation.share={share} is not possible: give a number above 0, up to 1.")
        self.teachers = list(teachers or ())
        self.share = share
        self._network: LogitAverage | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, probabilities: Tensor) -> Tensor:
        """Interpolate between labels and teachers.

        Args:
            images: normalised training images `(B, C, H, W)`.
            probabilities: target probabilities `(B, num_classes)` of the labels.

        Returns:
            Target probabilities `(B, num_classes)`.
        """
        if self._network is None:
            # Building a network draws initial weights, which must not advance the random state of the training.
            with torch.random.fork_rng(devices=[]):
                network = LogitAverage([load(Run(Path(path))).network for path in self.teachers])
            self._network = network.eval().to(images.device).to(memory_format=torch.channels_last)
        predictions = self._network(images).float().softmax(dim=1)
        return probabilities.lerp(predictions, self.share)


def find_teachers(config: DictConfig) -> list[str]:
    """Return the absolute paths of the runs that `config.distillation.teachers` names.

    Raises:
        UserError: if it names no finished run, or one that cannot be read or has other classes or image preparation.
    """
    references = config.distillation.teachers
    if not references:
        raise UserError("distillation.teachers is empty: give a finished run, a folder of runs, or a list of them.")
    paths = [Path(path).expanduser() for path in ([references] if isinstance(references, str) else references)]
    teachers = [teacher for path in paths for teacher in _finished_runs(path, Path(config.runs_dir))]
    for teacher in teachers:
        _check_teacher(teacher, config.data)
    return [str(teacher.path.resolve()) for teacher in teachers]


def _finished_runs(path: Path, runs_dir: Path) -> list[Run]:
    """The run at `path`, or all finished runs in the folder `path`."""
    if Run(path).config_file.exists():
        return [find_finished_run(path, runs_dir)]
    finished = list_runs(path, "finished")
    if not finished:
        raise UserError(f"distillation.teachers={path} holds no finished run: give a run, or a folder of runs.")
    print(f"Teachers: {', '.join(str(display_path(run.path)) for run in finished)}", file=sys.stderr)
    return finished


def _check_teacher(teacher: Run, student_data: DictConfig) -> None:
    teacher_data = teacher.config().data
    for key in _SHARED_OPTIONS:
        value, teacher_value = OmegaConf.select(student_data, key), OmegaConf.select(teacher_data, key)
        if value != teacher_value:
            raise UserError(
                f"distillation.teachers={teacher.path} was trained on other data "
                f"(data.{key} is {teacher_value} there, {value} here): choose a teacher of the same data."
            )
    load(teacher)
