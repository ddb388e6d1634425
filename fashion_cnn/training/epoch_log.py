"""One record an epoch, complete before the checkpoint that a resumed run starts from."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from fashion_cnn.models.ruler import Ruler
from fashion_cnn.training.stopwatch import Stopwatch


class EpochLog(Callback):
    """Writes all figures of an epoch to the loggers, at one step, when the epoch ends.

    Lightning would write them at two steps, some after the checkpoint: a run killed in between
    would lose them for good. `figures` holds those of the latest epoch, for the callbacks behind it.
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._measured: dict[str, float] = {}

    @classmethod
    def of(cls, trainer: Trainer) -> "EpochLog":
        """The one that runs in this training."""
        return next(callback for callback in trainer.callbacks if isinstance(callback, cls))  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self._measured = {name: value for name, value in figures.items() if not name.startswith("running/")}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module.running, Ruler)
        running = {f"running/{name}": value for name, value in pl_module.running.read_and_reset().items()}
        # For callbacks that watch them.
        pl_module.log_dict(running, logger=False)
        # With validation every n-th epoch only, its figures must not be repeated in between.
        self.figures = self._measured | {name: float(value) for name, value in running.items()}
        self._measured = {}
        record = self.figures | {
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "epoch": trainer.current_epoch,
        }
        for logger in trainer.loggers:
            logger.log_metrics(record, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                # Not in metrics.csv, which two runs of one seed share to the last digit.
                speed = {"throughput/images_per_second": Stopwatch.of(trainer).epoch_images_per_second}
                logger.log_metrics(speed, step=trainer.global_step)
            logger.save()
