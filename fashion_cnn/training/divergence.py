"""Stopping a training whose loss is no longer a number."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fashion_cnn.errors import UserError


class StopOnDivergence(Callback):
    """Ends the run when the loss turns NaN or infinite, before it reaches the weights.

    every_n_steps: how often to look on an accelerator, where each look waits for the device;
    on a CPU it looks at every step. Raises UserError.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        step = trainer.global_step
        if (loss.is_cpu or step % self.every_n_steps == 0) and not torch.isfinite(loss):
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            raise UserError(
                f"The loss became {loss.item()} at step {step} (epoch {trainer.current_epoch}), "
                f"at a learning rate of {rate:.3g}. Try a smaller optimizer.lr (a third of it), "
                "trainer.gradient_clip_val=1, a longer schedule.warmup, or trainer.precision=32-true."
            )
