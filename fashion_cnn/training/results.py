"""The figures of a finished training, every one by the same ruler and with the same weights."""

from datetime import UTC, datetime
from typing import Any

import lightning
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from fashion_cnn.analysis.history import read_history
from fashion_cnn.data import ImageDataModule
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run
from fashion_cnn.training import build
from fashion_cnn.training.hardware import describe
from fashion_cnn.training.stopwatch import Stopwatch
from fashion_cnn.training.weights import read_checkpoint


def collect_results(
    config: DictConfig, trainer: Trainer, module: ImageClassifier, data: ImageDataModule, run: Run
) -> dict[str, Any]:
    """Measure the run's best weights on train probe, val and test, and say what they cost. Flat, for results.json."""
    history = read_history(run)
    stopwatch = Stopwatch.of(trainer)
    best = read_checkpoint(run.weights)
    module.load_state_dict(best["state_dict"])
    return {
        "name": config.name,
        "seed": config.seed,
        **measure(config, module, data),
        **{name: float(history[name][-1]) for name in ("running/loss", "running/accuracy")},
        "epochs": trainer.current_epoch,
        "best_epoch": best["epoch"] + 1,
        "seconds": round(stopwatch.seconds, 3),
        "images_per_second": round(stopwatch.images_per_second, 1),
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        "multiply_adds": multiply_adds(module),
        "precision": trainer.precision,
        "hardware": describe(trainer.strategy.root_device),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def measure(config: DictConfig, module: ImageClassifier, data: ImageDataModule) -> dict[str, float]:
    """Loss and accuracy of `module` as it is on train probe, val and test, and the gaps between them."""
    tester = build.measuring_trainer(config)
    figures: dict[str, Any] = {}
    # The test images are read once, here, after every choice has been made.
    passes = [(tester.validate, data.val_size > 0), (tester.test, config.test)]
    for measure_pass, wanted in passes:
        if wanted:
            measure_pass(module, datamodule=data, verbose=False)
            figures |= tester.callback_metrics
    if {"train/loss", "test/loss"} <= figures.keys():
        figures["gap_test/loss"] = figures["test/loss"] - figures["train/loss"]
        figures["gap_test/accuracy"] = figures["train/accuracy"] - figures["test/accuracy"]
    return {name: float(value) for name, value in figures.items()}


def multiply_adds(module: ImageClassifier) -> int:
    """Multiplications of one image's way through the network."""
    network = module.network
    training = network.training
    image = torch.zeros(1, *module.image_shape, device=module.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(image)
    network.train(training)
    return int(counter.get_total_flops()) // 2
