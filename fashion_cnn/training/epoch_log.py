"""One record an epoch, complete before the checkpoint that a resumed run starts from."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from fashion_cnn.training.stopwatch import Stopwatch


class EpochLog(Callback):
    """Writes all figures of an epoch to the loggers, at one step, when the epoch ends.

    Lightning would write them at two steps, some after the checkpoint: a run killed in between
    would lose them for good.
    """

    def __init__(self) -> None:
        self._validated = False
        self._validation_names: set[str] = set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking
        self._validation_names = {name for name in trainer.callback_metrics if not name.startswith("running/")}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # With validation every n-th epoch only, its figures must not be repeated in between.
        stale = set() if self._validated else self._validation_names
        self._validated = False
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name not in stale}
        figures["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        figures["epoch"] = trainer.current_epoch
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                # Not in metrics.csv, which two runs of one seed share to the last digit.
                speed = {"throughput/images_per_second": Stopwatch.of(trainer).epoch_images_per_second}
                logger.log_metrics(speed, step=trainer.global_step)
            logger.save()
