"""Stopping a trial that does worse than the others did after as many epochs."""

import optuna
from lightning.pytorch import Callback, LightningModule, Trainer

from fashion_cnn.errors import Pruned
from fashion_cnn.training.epoch_log import EpochLog


class PruneTrial(Callback):
    """Tells the study the validation accuracy of each epoch, and ends the training where its pruner says so.

    Raises Pruned.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        accuracy = EpochLog.of(trainer).figures.get("val/accuracy")
        epoch = trainer.current_epoch + 1
        if accuracy is None:
            return
        self.trial.report(accuracy, epoch)
        # After its last epoch there is nothing left to spare.
        if epoch != trainer.max_epochs and self.trial.should_prune():
            raise Pruned(f"pruned after epoch {epoch}: validation {accuracy:.2%}")
