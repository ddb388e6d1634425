"""The page that TensorBoard's custom scalars open with: train and validation on one chart."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

_OVERFITTING = "Overfitting: is it, and since when?"
_TRAINING = "Training: how it goes"


def dashboard_layout() -> dict[str, dict[str, list[Any]]]:
    """The charts, as `SummaryWriter.add_custom_scalars` takes them; a line's name is a regular expression."""
    return {
        _OVERFITTING: {
            "loss (train, val)": ["Multiline", ["train/loss$", "val/loss$"]],
            "accuracy (train, val)": ["Multiline", ["train/accuracy$", "val/accuracy$"]],
            "gap in accuracy, with its 95% interval": [
                "Margin",
                ["gap/accuracy", "gap/accuracy_low", "gap/accuracy_high"],
            ],
            "gap in loss, with its 95% interval": ["Margin", ["gap/loss", "gap/loss_low", "gap/loss_high"]],
            "gap in accuracy by class": ["Multiline", ["gap_by_class/.*"]],
            "calibration error (train, val)": ["Multiline", ["train/calibration_error$", "val/calibration_error$"]],
        },
        _TRAINING: {
            "learning rate": ["Multiline", ["learning_rate$"]],
            "images a second": ["Multiline", ["throughput/images_per_second$"]],
            "running training loss (augmented images, moving weights)": ["Multiline", ["running/loss$"]],
        },
    }


def board_writer(trainer: Trainer) -> Any:
    """The training's own `SummaryWriter`, where this process has one; else None."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None
