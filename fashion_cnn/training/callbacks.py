"""Training callbacks: timing, logging, progress, seeding, weight averaging, early stopping, divergence."""

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar, WeightAveraging
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim.swa_utils import get_ema_avg_fn, get_ema_multi_avg_fn

from fashion_cnn.data.splits import derive_seed
from fashion_cnn.errors import UserError
from fashion_cnn.models.classifier import SplitMetrics
from fashion_cnn.terminal import table_console
from fashion_cnn.training.loggers import TensorBoard

CallbackType = TypeVar("CallbackType", bound=Callback)
# Accuracies in percent, the gap in points; `running` is the loss of the training batches.
HEADER = """\
                 accuracy, %       gap                          loss
epoch    train probe     val    points   train probe     val  running  images/s"""


def find_callback(trainer: Trainer, kind: type[CallbackType]) -> CallbackType:
    """Return the trainer's callback of the class `kind`."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]


class Stopwatch(Callback):
    """Measures time and throughput, with validation kept apart from training.

    Attributes:
        seconds: duration of all finished epochs, including validation.
        training_seconds: duration of their training steps.
        training_images: images in those steps, over all processes.
        epoch_images_per_second: throughput of the latest epoch's training steps.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.training_seconds = 0.0
        self.training_images = 0
        self.epoch_images_per_second = 0.0
        self._epoch_start = self._validation_start = self._epoch_validation_seconds = 0.0
        self._epoch_images = 0

    @property
    def images_per_second(self) -> float:
        """Throughput of all training steps, without validation."""
        return self.training_images / self.training_seconds if self.training_seconds else 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._epoch_start = time.perf_counter()
        self._epoch_validation_seconds = 0.0
        self._epoch_images = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of the step."""
        self._epoch_images += len(batch.targets) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the validation."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the duration of the validation."""
        self._epoch_validation_seconds += time.perf_counter() - self._validation_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch to the totals."""
        now = time.perf_counter()
        training_seconds = now - self._epoch_start - self._epoch_validation_seconds
        self.epoch_images_per_second = self._epoch_images / training_seconds
        self.seconds += now - self._epoch_start
        self.training_seconds += training_seconds
        self.training_images += self._epoch_images

    def state_dict(self) -> dict[str, Any]:
        """Return the totals."""
        return {name: getattr(self, name) for name in ("seconds", "training_seconds", "training_images")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the totals."""
        vars(self).update(state_dict)


class SlowdownNotice(Callback):
    """Prints a hint when the training steps on a CPU become several times slower because of other programs.

    A training with a thread on each core waits for the thread whose core another program uses. The hint says how to
    continue with fewer threads; nothing is changed.

    Args:
        factor: how many times slower the median of the last `steps` steps must be than that of the first ones.
        steps: number of steps of both medians.
        seconds: minimum total duration of the slow steps.
    """

    def __init__(self, factor: float = 5.0, steps: int = 20, seconds: float = 5.0) -> None:
        if factor <= 1 or steps < 1:
            raise UserError(
                f"callbacks.slowdown.factor={factor} and callbacks.slowdown.steps={steps} are not possible: give a "
                "factor above 1 and 1 or more steps."
            )
        self.factor, self.seconds = factor, seconds
        # The first steps of a training are slower than the others.
        self._warm_up = steps
        self._first: deque[float] = deque(maxlen=steps)
        self._last: deque[float] = deque(maxlen=steps)
        self._start = 0.0
        self._is_done = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch a training on a CPU alone: steps on an accelerator end before it has computed them."""
        self._is_done = pl_module.device.type != "cpu"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of the step."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print the hint, once, if the steps have become slower."""
        if self._is_done or not (slowdown := self.add(time.perf_counter() - self._start)):
            return
        self._is_done = True
        threads = torch.get_num_threads()
        line = f"Training has become {slowdown:.0f} times slower: other programs use the processor."
        if threads > 1:
            line += (
                f" To use fewer threads, stop it with Ctrl-C, and add threads={threads // 2} to the command it prints."
            )
        if isinstance(bar := trainer.progress_bar_callback, LightningProgressBar):
            bar.print(line)
        else:
            print(line, flush=True)

    def add(self, seconds: float) -> float | None:
        """Add the duration of a step.

        Returns:
            The ratio of the median durations of the last and the first steps if it reaches `factor`, else None.
        """
        if self._warm_up:
            self._warm_up -= 1
        elif len(self._first) < (self._first.maxlen or 0):
            self._first.append(seconds)
        else:
            self._last.append(seconds)
        if len(self._last) < (self._last.maxlen or 0) or sum(self._last) < self.seconds:
            return None
        slowdown = statistics.median(self._last) / statistics.median(self._first)
        return slowdown if slowdown >= self.factor else None


class EpochLog(Callback):
    """Writes all metrics of an epoch to the loggers at its end, under one step.

    Lightning would write some of them after the checkpoint: a run killed in between would lose them.

    Args:
        hyperparameters: settings of the run, which all loggers but TensorBoard get at the start. TensorBoard gets them
            at the end, with the final metrics and the analysis: an unfinished run would look like a finished one.

    Attributes:
        metrics: metrics of the latest epoch by name, for callbacks that come later.
    """

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        self.hyperparameters = dict(hyperparameters)
        self.metrics: dict[str, float] = {}
        self._evaluation: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the hyperparameters, and create TensorBoard's files of the splits that will be evaluated."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard) and data.val_size:
                logger.open_splits(["train", "val"] if data.probe_size else ["val"])
            elif not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.hyperparameters)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics of the validation pass."""
        if not trainer.sanity_checking:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self._evaluation = {name: value for name, value in metrics.items() if not name.startswith("running/")}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the running metrics, the learning rate and the epoch, and log them all."""
        assert isinstance(pl_module.running, SplitMetrics)
        running = {f"running/{name}": value for name, value in pl_module.running.compute_and_reset().items()}
        # Callbacks may monitor them.
        pl_module.log_dict(running, logger=False)
        self.metrics = self._evaluation | {name: float(value) for name, value in running.items()}
        # Epochs without a validation pass (trainer.check_val_every_n_epoch) must not repeat its metrics.
        self._evaluation = {}
        record = self.metrics | {
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "epoch": trainer.current_epoch,
        }
        for logger in trainer.loggers:
            logger.log_metrics(record, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                # Kept out of metrics.csv, which is identical for two runs of one seed.
                throughput = find_callback(trainer, Stopwatch).epoch_images_per_second
                metrics = {"throughput/images_per_second": throughput, "epoch": trainer.current_epoch}
                logger.log_metrics(metrics, step=trainer.global_step)
            logger.save()


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar with epochs from 1, shown in a terminal only: it would fill a log file."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 0)

    def _get_train_description(self, current_epoch: int) -> str:
        number = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        # Descriptions of one length do not flicker.
        return f"{number:{len(self.validation_description)}}"


class EpochLines(Callback):
    """Prints a header, then one line of metrics at the end of each epoch.

    Further metrics (conf/metrics) are printed on the validation set, where the terminal is wide enough.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the header."""
        if name := getattr(pl_module, "training_loss_name", None):
            pl_module.print(f"loss: cross-entropy; running: the loss that is trained, {name}")
        self._shown = self._metrics_that_fit(getattr(pl_module, "metric_names", ())[2:])
        pl_module.print(HEADER + "".join(f"{heading:>{width}}" for heading, width in self._shown.items()))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch."""
        metrics = find_callback(trainer, EpochLog).metrics
        epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        percent = {name: 100 * value for name, value in metrics.items() if name.endswith("/accuracy")}
        columns = [
            f"{epoch:<8}",
            _cell(percent, "train/accuracy", ">11.2f"),
            _cell(percent, "val/accuracy", ">7.2f"),
            _cell(percent, "gap/accuracy", ">+9.2f"),
            _cell(metrics, "train/loss", ">13.4f"),
            _cell(metrics, "val/loss", ">7.4f"),
            _cell(metrics, "running/loss", ">8.4f"),
            f"{find_callback(trainer, Stopwatch).epoch_images_per_second:>9,.0f}",
        ]
        further = (_cell(metrics, heading.replace(" ", "/"), f">{width}.4f") for heading, width in self._shown.items())
        pl_module.print(" ".join(columns) + "".join(further), flush=True)

    @staticmethod
    def _metrics_that_fit(names: Sequence[str]) -> dict[str, int]:
        """Headings and widths of the columns of further metrics, as many as fit into a line of the terminal."""
        free = table_console().width - len(HEADER.splitlines()[-1])
        shown: dict[str, int] = {}
        for name in names:
            heading = f"val {name}"
            width = max(len(heading), 8) + 2
            if sum(shown.values()) + width <= free:
                shown[heading] = width
        return shown


def _cell(metrics: dict[str, float], name: str, spec: str) -> str:
    """The metric in the format `spec`, or a dash of the same width if it is missing."""
    return format(metrics[name], spec) if name in metrics else f"{'-':>{len(format(0.0, spec))}}"


class SeedEachEpoch(Callback):
    """Seeds torch's random generators, which augmentation and dropout use, at the start of each training epoch.

    A run that is resumed at an epoch boundary then repeats the draws, though Lightning's checkpoints hold no random
    state. Each process of a distributed training has its own stream.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed from the run's seed, the epoch and the process."""
        torch.manual_seed(derive_seed("epoch", self.seed, trainer.current_epoch, trainer.global_rank))


class WarmedEMAWeightAveraging(WeightAveraging):
    """Exponential moving average of the weights with a warm-up of the decay.

    The decay at update n is min(`decay`, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage: a constant
    0.999 would keep the random initial weights in the average for thousands of steps. Buffers, such as the statistics
    of batch normalisation, are averaged too.

    Args:
        decay: limit of the decay, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay} is not possible: give a number from 0 to below 1.")

        def decay_at(updates: Tensor | int) -> float:
            count = float(updates)
            return min(decay, (1 + count) / (10 + count))

        def average_all(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> Any:
            return get_ema_multi_avg_fn(decay_at(updates))(averaged, current, updates)

        def average_one(averaged: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
            return get_ema_avg_fn(decay_at(updates))(averaged, current.to(averaged.dtype), updates)

        super().__init__(use_buffers=True, multi_avg_fn=average_all)
        self._average_one = average_one

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the average on the training device, before Lightning moves the module there."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average the weights one by one if they have another format than their average.

        The average is created before Lightning converts the weights, for example to trainer.precision=bf16-true, which
        is too coarse for an average. Older versions of torch cannot average lists of two formats.
        """
        average = self._average_model
        assert average is not None
        pairs = zip(average.module.parameters(), pl_module.parameters(), strict=True)
        if any(averaged.dtype != weights.dtype for averaged, weights in pairs):
            average.multi_avg_fn, average.avg_fn = None, self._average_one


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping, for which a run that it stopped stays stopped when resumed for its evaluation."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once if the run was stopped before."""
        # `stopped_epoch` is 0 after a stop in the first epoch. Older checkpoints have no `stopping_reason`.
        if self.stopped_epoch or self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True


class StopOnDivergence(Callback):
    """Raises UserError when the loss or a weight becomes NaN or infinite, before a checkpoint is written.

    Args:
        every_n_steps: interval of the checks of the loss on an accelerator, where each check waits for the device. On a
            CPU every loss is checked.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise UserError(f"callbacks.divergence.every_n_steps={every_n_steps} is not possible: give 1 or more.")
        self.every_n_steps = every_n_steps

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss of the step."""
        step = trainer.global_step
        if (loss.is_cpu or step % self.every_n_steps == 0) and not torch.isfinite(loss):
            self._stop(trainer, "loss", loss.item(), f"at step {step}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the weights after an epoch's last step, which no later loss of the epoch covers."""
        if trainer.is_last_batch:
            largest = torch.stack([weights.detach().abs().max() for weights in pl_module.parameters()]).max()
            if not torch.isfinite(largest):
                self._stop(trainer, "largest weight", largest.item(), f"with step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the mean loss of the epoch, which covers the steps between two checks."""
        mean = find_callback(trainer, EpochLog).metrics["running/loss"]
        if not math.isfinite(mean):
            self._stop(trainer, "loss", mean, f"at step {trainer.global_step} or up to {self.every_n_steps} before")

    def _stop(self, trainer: Trainer, quantity: str, value: float, when: str) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        raise UserError(
            f"The {quantity} became {value} {when} (epoch {trainer.current_epoch + 1}, learning rate {rate:.3g}). "
            "Try a third of optimizer.lr, trainer.gradient_clip_val=1, a longer schedule.warmup or "
            "trainer.precision=32-true."
        )
