"""Learning rate range test: raise the learning rate for a few hundred steps, and suggest one from the losses."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fashion_cnn.analysis.verdict import training_command
from fashion_cnn.errors import UserError, disk_errors_at
from fashion_cnn.models.hardware import restored_threads
from fashion_cnn.plots.style import LINE_COLORS, save_figure
from fashion_cnn.runs import create_folder, display_path, new_run, write_json
from fashion_cnn.training import build
from fashion_cnn.training.callbacks import SeedEachEpoch
from fashion_cnn.training.session import check_one_device, prepare, quieten_lightning, raise_interrupted, set_threads

FOLDER = "learning_rate"
# Weight of the previous average in the exponential moving average of the losses.
_SMOOTHING = 0.95
# The test ends when the smoothed loss exceeds its minimum by this factor.
_DIVERGED = 4.0
# Number of steps with a finite loss that a suggestion needs.
_MIN_STEPS = 20


@dataclass(frozen=True)
class RangeTest:
    """Losses of a range test, and the suggestion.

    Attributes:
        factors: the learning rates of the steps, as multiples of those of the config.
        losses: training loss of each step.
        smoothed: exponential moving average of the losses, corrected for its start at zero.
        steepest: the factor at which the smoothed loss falls fastest over the logarithm of the learning rate.
        lowest: the factor of the lowest smoothed loss, beyond which learning becomes unstable.
    """

    factors: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float
    lowest: float

    @property
    def suggested(self) -> float:
        """The factor half way between `steepest` and `lowest` on a logarithmic scale."""
        return math.sqrt(self.steepest * self.lowest)


def evaluate_range(factors: Sequence[float], losses: Sequence[float]) -> RangeTest:
    """Suggest a learning rate from the losses of a range test.

    Smith, "Cyclical Learning Rates for Training Neural Networks", 2017 (arXiv 1506.01186), section 3.3. The learning
    rate of the steepest descent, which Lightning suggests, is low for the peak of a schedule, and that of the lowest
    loss is too high.

    Args:
        factors: rising learning rates of the steps, as multiples of those of the config.
        losses: training loss of each step.

    Raises:
        UserError: if there are too few finite losses, they do not fall, or the learning rates do not rise.
    """
    finite = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    factors, losses = factors[:finite], losses[:finite]
    if finite < _MIN_STEPS:
        raise UserError(
            f"The loss diverged after {finite} steps, at {factors[-1] if finite else 0:.3g} times optimizer.lr: "
            "lower range_test.lowest or optimizer.lr."
        )
    if not (np.diff(factors) > 0).all():
        raise UserError(
            "The learning rate did not rise in each step: if trainer.precision is 16-mixed, which skips some, choose "
            "bf16-mixed or 32-true."
        )
    smoothed = smooth(losses)
    lowest = int(np.argmin(smoothed))
    # The first values are averages of few losses.
    first = min(_MIN_STEPS // 2, lowest)
    slopes = np.gradient(np.asarray(smoothed), np.log(factors))[first : lowest + 1]
    if lowest < _MIN_STEPS // 2 or slopes.min() >= 0:
        raise UserError(
            "The loss does not fall in the range test: lower range_test.lowest, raise range_test.steps, or check the "
            "data and the network."
        )
    return RangeTest(
        tuple(factors), tuple(losses), tuple(smoothed), factors[first + int(np.argmin(slopes))], factors[lowest]
    )


def smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average of `values`, corrected for its start at zero as in Adam."""
    average, smoothed = 0.0, []
    for step, value in enumerate(values, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * value
        smoothed.append(average / (1 - _SMOOTHING**step))
    return smoothed


class _Recorder(Callback):
    """Records learning rates and losses, and stops the training when the loss has diverged."""

    def __init__(self) -> None:
        self.factors: list[float] = []
        self.losses: list[float] = []
        self._next = math.nan
        # Losses of the batches since the last step, several with trainer.accumulate_grad_batches.
        self._batches: list[float] = []
        self._steps = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the learning rate of the step, before the schedule changes it."""
        (scheduler,) = (config.scheduler for config in trainer.lr_scheduler_configs)
        # All parameter groups have the same factor.
        pairs = zip(scheduler.get_last_lr(), scheduler.base_lrs, strict=True)
        self._next = next(float(rate) / float(base) for rate, base in pairs if base)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the mean loss of the step's batches, after its last one."""
        loss = outputs["loss"]
        # Lightning has divided it by the number of batches of a full step.
        self._batches.append(
            trainer.accumulate_grad_batches * float(loss.detach() if isinstance(loss, Tensor) else loss)
        )
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        self.losses.append(math.fsum(self._batches) / len(self._batches))
        self.factors.append(self._next)
        self._batches.clear()
        smoothed = smooth(self.losses)
        if not math.isfinite(self.losses[-1]) or smoothed[-1] > _DIVERGED * min(smoothed):
            trainer.should_stop = True


@restored_threads()
def find_learning_rate(
    config: DictConfig, check_resumed: Callable[[DictConfig], None] = lambda config: None
) -> dict[str, Any]:
    """Run the range test of a training, and write the curve and the suggestion to a new directory below `runs_dir`.

    All learning rates of the optimizer rise by the same factor, so those of its parameter groups keep their ratio. The
    schedule of the training is not used: the rate found is its peak.

    Args:
        config: a config of `conf/find_learning_rate.yaml`.
        check_resumed: see `fashion_cnn.training.session.run_training`.

    Returns:
        The content of `learning_rate.json`.

    Raises:
        UserError: if settings cannot work, or the losses suggest nothing.
        Interrupted: if the test was stopped.
    """
    quieten_lightning()
    _check_settings(config)
    options = config.range_test
    rates = _learning_rates(config)
    schedule = {"lowest": float(options.lowest), "highest": float(options.highest)}
    config.schedule = {"_target_": "fashion_cnn.models.optim.exponential", "_partial_": True, **schedule}
    config, data, module = prepare(config, None, check_resumed)
    folder = new_run(Path(config.runs_dir), FOLDER).path
    recorder = _Recorder()
    trainer = build.short_trainer(config, int(options.steps), [SeedEachEpoch(config.seed), recorder])
    check_one_device(trainer, "range test")
    set_threads(config, trainer)
    started = time.perf_counter()
    with raise_interrupted("Stopped; nothing was kept."):
        trainer.fit(module, datamodule=data)
    test = evaluate_range(recorder.factors, recorder.losses)
    suggestion = {f"optimizer.{key}": _round_rate(rate * test.suggested) for key, rate in rates.items()}
    overrides = [word for word in config.overrides or () if not word.lstrip("+").startswith("range_test.")]
    typed = OmegaConf.create({"overrides": overrides, "flags": config.flags})
    record = {
        "suggestion": suggestion,
        "configured": {f"optimizer.{key}": rate for key, rate in rates.items()},
        "steepest_at": {f"optimizer.{key}": _round_rate(rate * test.steepest) for key, rate in rates.items()},
        "lowest_at": {f"optimizer.{key}": _round_rate(rate * test.lowest) for key, rate in rates.items()},
        "command": training_command(typed, [f"{key}={value}" for key, value in suggestion.items()]),
        "seconds": time.perf_counter() - started,
        **asdict(test),
    }
    create_folder(folder, "runs_dir")
    with disk_errors_at(folder):
        save_figure(plot_range(test, rates["lr"]), folder / "learning_rate.png")
        write_json(folder / "learning_rate.json", record)
    return {**record, "written_to": str(display_path(folder))}


def _check_settings(config: DictConfig) -> None:
    options = config.range_test
    if config.resume is not None:
        raise UserError("resume continues trainings: to find a learning rate, leave it out.", status=2)
    if options.steps < _MIN_STEPS:
        raise UserError(f"range_test.steps={options.steps} is not possible: give {_MIN_STEPS} or more.", status=2)
    if not 0 < options.lowest < options.highest:
        raise UserError(
            f"range_test.lowest={options.lowest} and range_test.highest={options.highest} are not possible: give "
            "multiples of optimizer.lr, above 0, the lower one first.",
            status=2,
        )


def _learning_rates(config: DictConfig) -> dict[str, float]:
    """Return the learning rates among the options of the optimizer."""
    rates = {
        str(key): float(value)
        for key, value in config.optimizer.items()
        if (key == "lr" or str(key).endswith("_lr")) and isinstance(value, int | float)
    }
    if "lr" not in rates:
        raise UserError("The optimizer has no option lr: there is no learning rate to find.")
    return rates


def _round_rate(rate: float) -> float:
    """Round to two significant digits: the test is no more precise."""
    return float(f"{rate:.2g}")


def plot_range(test: RangeTest, rate: float) -> Figure:
    """Draw the losses over the learning rate, with the suggestion.

    Args:
        test: the range test.
        rate: `optimizer.lr` of the config.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    rates = np.asarray(test.factors) * rate
    axes.plot(rates, test.losses, color="#BBBBBB", linewidth=0.8, label="training loss of a batch")
    axes.plot(rates, test.smoothed, color=LINE_COLORS[0], label="smoothed")
    axes.axvline(rate, color=LINE_COLORS[2], linestyle=":", label=f"optimizer.lr={rate:.2g} of the config")
    span = "from the steepest descent to the lowest loss"
    axes.axvspan(test.steepest * rate, test.lowest * rate, color=LINE_COLORS[1], alpha=0.1, linewidth=0, label=span)
    label = f"suggestion: {test.suggested * rate:.2g}"
    axes.axvline(test.suggested * rate, color=LINE_COLORS[1], linestyle="--", label=label)
    axes.set(xscale="log", xlabel="optimizer.lr", ylabel="loss", title="Learning rate range test")
    axes.set_ylim(min(test.smoothed) * 0.9, max(test.smoothed[:_MIN_STEPS]) * 1.3)
    axes.legend(framealpha=0.8, edgecolor="none", fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
