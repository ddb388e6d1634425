"""Stopping a training whose loss is no longer a number."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.training.epoch_log import EpochLog


class StopOnDivergence(Callback):
    """Ends the run when the loss or a weight turns NaN or infinite, before a checkpoint is written.

    every_n_steps: how often to look on an accelerator, where each look waits for the device; on a CPU it looks at
    every step, before the loss reaches the weights. Raises UserError, for a value below 1 too.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise UserError(f"callbacks.divergence.every_n_steps={every_n_steps} is not possible: give 1 or more.")
        self.every_n_steps = every_n_steps

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        step = trainer.global_step
        if (loss.is_cpu or step % self.every_n_steps == 0) and not torch.isfinite(loss):
            self._stop(trainer, loss.item(), f"at step {step}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # No loss tells what the last step did, and weights are measured and kept next.
        if trainer.is_last_batch:
            largest = torch.stack([weights.detach().abs().max() for weights in pl_module.parameters()]).max()
            if not torch.isfinite(largest):
                self._stop(trainer, largest.item(), f"with step {trainer.global_step}", what="largest weight")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mean = EpochLog.of(trainer).figures["running/loss"]
        if not math.isfinite(mean):
            self._stop(trainer, mean, f"at step {trainer.global_step} or up to {self.every_n_steps} before")

    def _stop(self, trainer: Trainer, value: float, when: str, what: str = "loss") -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        raise UserError(
            f"The {what} became {value} {when} (epoch {trainer.current_epoch}), "
            f"at a learning rate of {rate:.3g}. Try a smaller optimizer.lr (a third of it), "
            "trainer.gradient_clip_val=1, a longer schedule.warmup, or trainer.precision=32-true."
        )
