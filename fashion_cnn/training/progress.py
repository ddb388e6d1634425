"""What a person sees while it trains: a line an epoch, and a bar above it in a terminal."""

import sys

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from fashion_cnn.training.epoch_log import EpochLog
from fashion_cnn.training.stopwatch import Stopwatch

HEADER = "epoch      train acc   val acc      gap   train loss  val loss  running loss   images/s"


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar, in a terminal only: elsewhere it would fill the log."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 0)


class EpochLines(Callback):
    """Prints a line of figures at the end of each epoch, below a heading."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.print(HEADER)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures = EpochLog.of(trainer).figures
        epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        columns = [
            f"{epoch:<9}",
            _figure(figures, "train/accuracy", ">11.4f"),
            _figure(figures, "val/accuracy", ">10.4f"),
            _figure(figures, "gap/accuracy", ">+9.4f"),
            _figure(figures, "train/loss", ">13.4f"),
            _figure(figures, "val/loss", ">10.4f"),
            _figure(figures, "running/loss", ">14.4f"),
            f"{Stopwatch.of(trainer).epoch_images_per_second:>11,.0f}",
        ]
        pl_module.print("".join(columns), flush=True)


def _figure(figures: dict[str, float], name: str, form: str) -> str:
    """The figure in the format `form`; where it was not measured, a dash as wide as a figure."""
    return format(figures[name], form) if name in figures else f"{'-':>{len(format(0.0, form))}}"
