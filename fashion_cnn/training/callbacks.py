"""Callbacks of a training.

Time and throughput, one record for each epoch, printed lines and a progress bar, seeds that make an epoch repeatable,
averaged weights, early stopping, and a stop when the loss diverges.
"""

import math
import sys
import time
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fashion_cnn.data.splits import derive_seed
from fashion_cnn.errors import UserError
from fashion_cnn.models.classifier import SplitMetrics

CallbackType = TypeVar("CallbackType", bound=Callback)
HEADER = "epoch      train acc   val acc      gap   train loss  val loss  running loss   images/s"


def find_callback(trainer: Trainer, kind: type[CallbackType]) -> CallbackType:
    """Return the trainer's callback of the class `kind`."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]


class Stopwatch(Callback):
    """Counts the seconds of all finished epochs, and the images and seconds of their training part alone."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.training_seconds = 0.0
        self.training_images = 0
        self.epoch_images_per_second = 0.0
        self._epoch_started = self._validation_started = self._epoch_validating = 0.0
        self._epoch_images = 0

    @property
    def images_per_second(self) -> float:
        """Of the training steps, validation left out."""
        return self.training_images / self.training_seconds if self.training_seconds else 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started = time.perf_counter()
        self._epoch_validating = 0.0
        self._epoch_images = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._epoch_images += len(batch.targets) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_validating += time.perf_counter() - self._validation_started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.perf_counter()
        trained = now - self._epoch_started - self._epoch_validating
        self.epoch_images_per_second = self._epoch_images / trained
        self.seconds += now - self._epoch_started
        self.training_seconds += trained
        self.training_images += self._epoch_images

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seconds", "training_seconds", "training_images")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


class EpochLog(Callback):
    """Writes all figures of an epoch to the loggers, at one step, when the epoch ends.

    Lightning would write them at two steps, some after the checkpoint: a run killed in between
    would lose them for good. `metrics` holds those of the latest epoch, for the callbacks behind it.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self._measured: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self._measured = {name: value for name, value in figures.items() if not name.startswith("running/")}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module.running, SplitMetrics)
        running = {f"running/{name}": value for name, value in pl_module.running.compute_and_reset().items()}
        # For callbacks that watch them.
        pl_module.log_dict(running, logger=False)
        # With validation every n-th epoch only, its figures must not be repeated in between.
        self.metrics = self._measured | {name: float(value) for name, value in running.items()}
        self._measured = {}
        record = self.metrics | {
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "epoch": trainer.current_epoch,
        }
        for logger in trainer.loggers:
            logger.log_metrics(record, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                # Not in metrics.csv, which two runs of one seed share to the last digit.
                speed = {"throughput/images_per_second": find_callback(trainer, Stopwatch).epoch_images_per_second}
                logger.log_metrics(speed, step=trainer.global_step)
            logger.save()


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar, in a terminal only: elsewhere it would fill the log."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 0)


class EpochLines(Callback):
    """Prints a line of figures at the end of each epoch, below a heading."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.print(HEADER)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures = find_callback(trainer, EpochLog).metrics
        epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        columns = [
            f"{epoch:<9}",
            _figure(figures, "train/accuracy", ">11.4f"),
            _figure(figures, "val/accuracy", ">10.4f"),
            _figure(figures, "gap/accuracy", ">+9.4f"),
            _figure(figures, "train/loss", ">13.4f"),
            _figure(figures, "val/loss", ">10.4f"),
            _figure(figures, "running/loss", ">14.4f"),
            f"{find_callback(trainer, Stopwatch).epoch_images_per_second:>11,.0f}",
        ]
        pl_module.print("".join(columns), flush=True)


def _figure(figures: dict[str, float], name: str, form: str) -> str:
    """The figure in the format `form`; where it was not measured, a dash as wide as a figure."""
    return format(figures[name], form) if name in figures else f"{'-':>{len(format(0.0, form))}}"


class SeedEachEpoch(Callback):
    """Seeds torch's generators (augmentation, dropout) at the start of each training epoch.

    Lightning's checkpoints hold no random state; with this they need none. Each process of a
    distributed training draws its own stream.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(derive_seed("epoch", self.seed, trainer.current_epoch, trainer.global_rank))


class WarmedEMAWeightAveraging(WeightAveraging):
    """Lightning's weight averaging with `decay` approached as min(decay, (1 + n) / (10 + n)) at update n.

    A fixed decay of 0.999 would carry the random first weights through the first few thousand steps.
    The ramp is that of TensorFlow's ExponentialMovingAverage. Buffers (the statistics of batch
    normalisation) are averaged with the weights.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> Any:
            count = float(updates)
            # The average is made before Lightning turns the weights into trainer.precision=bf16-true or its like.
            current = [weights.to(mean.dtype) for mean, weights in zip(averaged, current, strict=True)]
            return get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averaged, current, updates)

        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay} is not possible: give 0 up to, but not, 1.")
        super().__init__(use_buffers=True, multi_avg_fn=average)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Where the weights will be: Lightning calls this before it moves them there.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping; a run that it had ended does not train on when it is resumed to be measured."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopped_epoch:
            trainer.should_stop = True


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
        mean = find_callback(trainer, EpochLog).metrics["running/loss"]
        if not math.isfinite(mean):
            self._stop(trainer, mean, f"at step {trainer.global_step} or up to {self.every_n_steps} before")

    def _stop(self, trainer: Trainer, value: float, when: str, what: str = "loss") -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        raise UserError(
            f"The {what} became {value} {when} (epoch {trainer.current_epoch}), "
            f"at a learning rate of {rate:.3g}. Try a smaller optimizer.lr (a third of it), "
            "trainer.gradient_clip_val=1, a longer schedule.warmup, or trainer.precision=32-true."
        )
