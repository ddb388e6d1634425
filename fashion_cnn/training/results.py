"""The figures of a finished training, every one by the same ruler and with the same weights."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from fashion_cnn.analysis.history import History, read_history
from fashion_cnn.analysis.monitor import PredictionCollector, overfitting_metrics
from fashion_cnn.analysis.verdict import advise, judge, training_command
from fashion_cnn.data import ImageDataModule
from fashion_cnn.inference.network import read_checkpoint, weights_sha256
from fashion_cnn.metrics.gap import gap_metrics, largest_gap_classes
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.hardware import describe_device
from fashion_cnn.runs import Run
from fashion_cnn.training import build
from fashion_cnn.training.callbacks import Stopwatch, find_callback


def collect_results(
    config: DictConfig, trainer: Trainer, module: ImageClassifier, data: ImageDataModule, run: Run
) -> tuple[dict[str, Any], dict[str, Predictions]]:
    """Measure the run's best weights on train probe, val and test, and say what they cost and what they come to.

    Returns the results, flat, for results.json, and the predictions by split. Leaves the best weights in `module`.
    """
    history = read_history(run)
    stopwatch = find_callback(trainer, Stopwatch)
    best = read_checkpoint(run.weights)
    module.load_state_dict(best["state_dict"])
    flip_average = config.get("flip_average", False)  # A run of an older version has none.
    figures, predictions = evaluate_splits(config, module, data, test=config.test, flip_average=flip_average)
    results = {
        "name": config.name,
        "seed": config.seed,
        **figures,
        **{name: float(history[name][-1]) for name in ("running/loss", "running/accuracy")},
        "train_images": len(data.train_split),
        "epochs": trainer.current_epoch,
        "best_epoch": best["epoch"] + 1,
        "chosen_on_validation": run.weights == run.best_checkpoint,
        "seconds": round(stopwatch.seconds, 3),
        **_of_teachers(config),
        "images_per_second": round(stopwatch.images_per_second, 1),
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        "multiply_adds": count_multiply_adds(module),
        "weights_sha256": weights_sha256(best["state_dict"]),
        "precision": trainer.precision,
        "hardware": describe_device(trainer.strategy.root_device),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return results | verdict_results(config, history, results, predictions, data), predictions


def _of_teachers(config: DictConfig) -> dict[str, float]:
    """How long the networks that it learned from were trained, and theirs."""
    if not config.get("distillation"):
        return {}
    theirs = [Run(Path(path)).results() for path in config.distillation.teachers]
    return {"teachers_seconds": round(sum(each["seconds"] + each.get("teachers_seconds", 0) for each in theirs), 3)}


def evaluate_splits(
    config: DictConfig, module: ImageClassifier, data: ImageDataModule, *, test: bool, flip_average: bool
) -> tuple[dict[str, float], dict[str, Predictions]]:
    """Measure `module` as it is on train probe, val and, where `test` says so, test: figures, gaps and predictions.

    flip_average: by the mean over an image and its mirror image too, whose predictions of val are `val_flip`.
    """
    collector = PredictionCollector()
    module.flip_average = flip_average
    tester = build.evaluation_trainer(config, collector)
    figures: dict[str, Any] = {}
    # The test images are read once, by the run's best weights, after every choice has been made.
    passes = [(tester.validate, data.val_size + data.probe_size > 0), (tester.test, test and data.has_test)]
    for measure_pass, wanted in passes:
        if wanted:
            measure_pass(module, datamodule=data, verbose=False)
            figures |= tester.callback_metrics
    module.flip_average = False
    # Lightning leaves it in the number format of trainer.precision=bf16-true and its like.
    module.float()
    # Answers that are averaged so are calibrated by these.
    averaged = {split: seen for split, seen in collector.predictions.items() if split == "val_flip"}
    predictions = {split: seen for split, seen in collector.predictions.items() if not split.endswith("_flip")}
    figures |= {f"{split}/balanced_accuracy": seen.balanced_accuracy for split, seen in predictions.items()}
    if {"train", "val"} <= predictions.keys():
        figures |= overfitting_metrics(predictions, data)
    if {"train", "test"} <= predictions.keys():
        figures["gap_test/loss"] = figures["test/loss"] - figures["train/loss"]
        figures["gap_test/accuracy"] = figures["train/accuracy"] - figures["test/accuracy"]
        figures |= gap_metrics(predictions["train"], predictions["test"], prefix="gap_test")
    return {name: float(value) for name, value in figures.items()}, predictions | averaged


def verdict_results(
    config: DictConfig,
    history: History,
    results: dict[str, Any],
    predictions: dict[str, Predictions],
    data: ImageDataModule,
) -> dict[str, Any]:
    """The verdict on the training, what carries its gap, and the commands to try; nothing where no gap was measured."""
    if not {"train", "val"} <= predictions.keys():
        return {}
    verdict = judge(history, len(predictions["train"]), len(predictions["val"]))
    if verdict is None:
        return {}
    advice = advise(verdict, config, results["epochs"])
    return {
        "verdict": verdict.kind,
        "verdict_rule": verdict.rule,
        "rising_since": verdict.rising_since,
        "gap_last/accuracy": verdict.gap.estimate,
        "gap_last/accuracy_low": verdict.gap.low,
        "gap_last/accuracy_high": verdict.gap.high,
        "gap_last/loss": verdict.loss_gap,
        "gap_last/epoch": verdict.last_epoch,
        "gap_carriers": [
            data.class_names[label] for label in largest_gap_classes(predictions["train"], predictions["val"])
        ],
        "advice": [training_command(config.overrides or [], piece.overrides) for piece in advice],
        "advice_reasons": [piece.reason for piece in advice],
    }


def count_multiply_adds(module: ImageClassifier) -> int:
    """Multiplications of one image's way through the network."""
    network = module.network
    training = network.training
    image = torch.zeros(1, *module.image_shape, device=module.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(image)
    network.train(training)
    return int(counter.get_total_flops()) // 2
