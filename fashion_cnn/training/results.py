"""Results of a finished training: all splits evaluated in the same way, with the same weights."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fashion_cnn.analysis import forecast
from fashion_cnn.analysis.history import History, evaluation_lag, read_history
from fashion_cnn.analysis.monitor import GapMonitor, PredictionCollector, overfitting_metrics
from fashion_cnn.analysis.verdict import Advice, Verdict, advise, judge, judge_forecast, training_command
from fashion_cnn.data import ImageDataModule, InMemoryDataset
from fashion_cnn.inference.network import NetworkRunner, read_checkpoint, weights_sha256
from fashion_cnn.metrics.gap import ValidationPasses, gap_metrics, largest_gap_classes
from fashion_cnn.metrics.intervals import Interval, to_json_dict
from fashion_cnn.metrics.memorisation import SubsetLogits
from fashion_cnn.metrics.predictions import PREDICTION_FIELDS, Predictions
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.hardware import describe_device
from fashion_cnn.runs import Run
from fashion_cnn.training import build
from fashion_cnn.training.callbacks import Stopwatch, find_callback

# Number of images that are read into memory at a time.
_IMAGES_PER_PART = 10_000


def collect_results(
    config: DictConfig, trainer: Trainer, module: ImageClassifier, data: ImageDataModule, run: Run
) -> tuple[dict[str, Any], dict[str, Predictions]]:
    """Evaluate the best weights of a run on the train probe, the validation set and the test set.

    Args:
        config: the settings of the run.
        trainer: the Trainer that has trained it.
        module: its module, which has the best weights afterwards.
        data: its data.
        run: its directory.

    Returns:
        The contents of results.json, a flat dict of metrics, costs and verdict; and the predictions by split.
    """
    history = read_history(run)
    best = read_checkpoint(run.weights)
    module.load_state_dict(best["state_dict"])
    metrics, predictions = evaluate_splits(
        config, module, data, test=config.test, flip_average=build.averages_flips(config)
    )
    results = {
        "name": config.name,
        "seed": config.seed,
        **metrics,
        **({"metrics": list(module.metric_names[2:])} if module.metric_names[2:] else {}),
        **{name: float(history[name][-1]) for name in ("running/loss", "running/accuracy")},
        **({"training_loss": name} if (name := module.training_loss_name) else {}),
        **({"label_smoothing": smoothing} if (smoothing := module.training_label_smoothing) else {}),
        "train_images": len(data.train_split),
        **({"val_images": len(predictions["val"])} if "val" in predictions else {}),
        "epochs": trainer.current_epoch,
        "best_epoch": best["epoch"] + 1,
        "chosen_on_validation": run.weights == run.best_checkpoint,
        **_teachers_seconds(config),
        "weights_sha256": weights_sha256(best["state_dict"]),
        **_costs(trainer, module),
    }
    if "train" in predictions:
        lag = evaluation_lag(history, len(predictions["train"]), images_per_epoch(trainer, data))
        results |= {"evaluation_lag": lag.estimate} if lag.low > 0 else {}
    monitors = [part for part in trainer.callbacks if isinstance(part, GapMonitor)]  # type: ignore[attr-defined]
    passes = monitors[0].passes if monitors else None
    if not data.val_size:
        network = NetworkRunner(module, data, device=trainer.strategy.root_device, precision=trainer.precision)
        return results | forecast_results(config, results, network, data), predictions
    return results | verdict_results(config, history, results, predictions, data, passes), predictions


def collect_logits(
    config: DictConfig, trainer: Trainer, module: ImageClassifier, data: ImageDataModule, run: Run
) -> tuple[dict[str, Any], SubsetLogits]:
    """Compute the logits of the last weights for all training and test images, without augmentation.

    All images outside the training subset serve as validation images, since no choice is made by them.

    Args:
        config: the settings of the run.
        trainer: the Trainer that has trained it.
        module: its module, which has the last weights afterwards.
        data: its data.
        run: its directory.

    Returns:
        The contents of results.json, without metrics of the test set; and the logits in half precision.
    """
    module.load_state_dict(read_checkpoint(run.last_checkpoint)["state_dict"])
    images, labels = data.read(train=True)
    members = data.train_positions(labels).sort().values
    members = members[data.training_targets[members] >= 0]
    trained = torch.isin(members, data.train_split.indices)
    network = NetworkRunner(module, data, device=trainer.strategy.root_device, precision=trainer.precision)
    dataset = InMemoryDataset(images, data.training_targets, members)
    predictions = Predictions(_logits(network, dataset), dataset.targets, members)
    test = InMemoryDataset(images, labels, members[:0])
    if data.has_test:
        data.setup("test")
        test = data.test_split
    results = {
        "name": config.name,
        "seed": config.seed,
        **_subset_metrics(predictions, trained),
        "train_images": int(trained.sum()),
        "val_images": int((~trained).sum()),
        "epochs": trainer.current_epoch,
        "best_epoch": trainer.current_epoch,
        "chosen_on_validation": False,
        **_costs(trainer, module),
    }
    return results, SubsetLogits(
        logits=predictions.logits.numpy().astype(np.float16),
        targets=dataset.targets.numpy().astype(np.int32),
        indices=members.numpy().astype(np.int32),
        trained=trained.numpy(),
        test_logits=_logits(network, test).numpy().astype(np.float16),
        test_targets=test.targets.numpy().astype(np.int32),
        test_indices=test.indices.numpy().astype(np.int32),
    )


def _subset_metrics(predictions: Predictions, trained: Tensor) -> dict[str, float]:
    """Loss and accuracy on the training subset and on all other images, and their gap.

    Args:
        predictions: predictions of N images.
        trained: `(N,)` bool, True for the images in the training subset.
    """
    metrics: dict[str, float] = {}
    for split, mask in (("train", trained), ("val", ~trained)):
        if mask.any():
            part = Predictions(*(getattr(predictions, name)[mask] for name in PREDICTION_FIELDS))
            metrics[f"{split}/loss"] = part.losses.mean().item()
            metrics[f"{split}/accuracy"] = part.correct.double().mean().item()
    if "val/loss" in metrics:
        metrics["gap/loss"] = metrics["val/loss"] - metrics["train/loss"]
        metrics["gap/accuracy"] = metrics["train/accuracy"] - metrics["val/accuracy"]
    return metrics


def images_per_epoch(trainer: Trainer, data: ImageDataModule) -> int:
    """Return the number of images that an epoch trains on, in all processes together.

    Args:
        trainer: the Trainer that has trained on `data`.
        data: the data module, whose `batch_size` is that of one process.
    """
    batches = trainer.num_training_batches * trainer.world_size
    return int(min(len(data.train_split), data.batch_size * batches))


def _costs(trainer: Trainer, module: ImageClassifier) -> dict[str, Any]:
    """Time, size and machine of a training that has just ended."""
    stopwatch = find_callback(trainer, Stopwatch)
    return {
        "seconds": round(stopwatch.seconds, 3),
        "images_per_second": round(stopwatch.images_per_second, 1),
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        "multiply_adds": count_multiply_adds(module),
        "precision": trainer.precision,
        "hardware": describe_device(trainer.strategy.root_device),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _logits(network: NetworkRunner, split: InMemoryDataset) -> Tensor:
    """Logits `(N, C)` of the images of a split, rounded to half precision; images are read into memory in parts."""
    limit = torch.finfo(torch.float16).max
    parts = [network.logits(split.images_at(part)) for part in split.indices.split(_IMAGES_PER_PART) if len(part)]
    logits = torch.cat(parts) if parts else torch.zeros(0, network.data.num_classes)
    return logits.clamp(-limit, limit).half().float()


def _teachers_seconds(config: DictConfig) -> dict[str, float]:
    """Training time of the distillation teachers, including that of their own teachers."""
    if not config.get("distillation"):
        return {}
    teachers = [Run(Path(path)).results() for path in config.distillation.teachers]
    seconds = sum(teacher["seconds"] + teacher.get("teachers_seconds", 0) for teacher in teachers)
    return {"teachers_seconds": round(seconds, 3)}


def evaluate_splits(
    config: DictConfig, module: ImageClassifier, data: ImageDataModule, *, test: bool, flip_average: bool
) -> tuple[dict[str, float], dict[str, Predictions]]:
    """Evaluate the module's present weights on the train probe, the validation set and, on request, the test set.

    Args:
        config: the settings of the run.
        module: the module to evaluate.
        data: its data.
        test: whether to evaluate the test set.
        flip_average: whether to evaluate each split a second time with the logits averaged over each image and its
            mirror image.

    Returns:
        Metrics by name, such as `val/accuracy`, `val_flip/accuracy` and `gap/loss`; and predictions by split. Of the
        flip-averaged predictions, only those of the validation set are returned, as `val_flip`.
    """
    collector = PredictionCollector()
    module.flip_average = flip_average
    evaluator = build.evaluation_trainer(config, collector)
    metrics: dict[str, Any] = {}
    if data.val_size + data.probe_size > 0:
        evaluator.validate(module, datamodule=data, verbose=False)
        metrics |= evaluator.callback_metrics
    # The test set is read once, with the best weights, after every choice has been made.
    if test and data.has_test:
        evaluator.test(module, datamodule=data, verbose=False)
        metrics |= evaluator.callback_metrics
    module.flip_average = False
    # With a precision such as bf16-true, Lightning leaves the weights in that format.
    module.float()
    predictions = {split: p for split, p in collector.predictions.items() if not split.endswith("_flip")}
    metrics |= {f"{split}/balanced_accuracy": p.balanced_accuracy for split, p in predictions.items()}
    if {"train", "val"} <= predictions.keys():
        metrics |= overfitting_metrics(predictions, data)
    if {"train", "test"} <= predictions.keys():
        train_share = len(predictions["train"]) / len(data.train_split)
        for name in module.metric_names:
            metrics[f"gap_test/{name}"] = module.gap(name, metrics[f"train/{name}"], metrics[f"test/{name}"])
        metrics |= gap_metrics(predictions["train"], predictions["test"], train_share, prefix="gap_test")
    # Flip-averaged validation predictions calibrate flip-averaged predictions.
    if "val_flip" in collector.predictions:
        predictions["val_flip"] = collector.predictions["val_flip"]
    return {name: float(value) for name, value in metrics.items()}, predictions


def verdict_results(
    config: DictConfig,
    history: History,
    results: dict[str, Any],
    predictions: dict[str, Predictions],
    data: ImageDataModule,
    passes: ValidationPasses | None,
) -> dict[str, Any]:
    """Return the verdict on the training: its rule, the gap at the end, the classes behind it and commands to try.

    Args:
        config: the settings of the run.
        history: metrics of each epoch.
        results: the results so far, of which `parameters`, `evaluation_lag`, `best_epoch` and `chosen_on_validation`
            are read.
        predictions: predictions of the best weights by split.
        data: the run's data, for the class names and the size of the training split.
        passes: the measurements on each validation image, if the run has them.

    Returns:
        Entries of results.json; none if there was no train probe, no validation set or no validation pass.
    """
    if not {"train", "val"} <= predictions.keys():
        return {}
    probe_count = len(predictions["train"])
    verdict = judge(
        history,
        config,
        train_images=len(data.train_split),
        probe_count=probe_count,
        val_count=len(predictions["val"]),
        parameters=results["parameters"],
        passes=passes,
    )
    if verdict is None:
        return {}
    assert verdict.gap_share is not None
    train_share = probe_count / len(data.train_split)
    return {
        **_verdict_and_advice(verdict, config, lags="evaluation_lag" in results),
        "rising_since": verdict.rising_since,
        **(_interval_results("loss_rise", verdict.loss_rise) if verdict.loss_rise is not None else {}),
        **_interval_results("gap_last/accuracy", verdict.gap),
        **_interval_results("gap_last/share", verdict.gap_share),
        "gap_last/loss": verdict.loss_gap,
        "gap_last/epoch": verdict.last_epoch,
        **_best_epoch_gap(config, results, passes, probe_count, train_share),
        "gap_carriers": [
            data.class_names[label]
            for label in largest_gap_classes(predictions["train"], predictions["val"], train_share)
        ],
    }


def forecast_results(
    config: DictConfig, results: dict[str, Any], network: NetworkRunner, data: ImageDataModule
) -> dict[str, Any]:
    """Return the forecast of the gap of a training without validation images, and the verdict on it.

    Args:
        config: the settings of the run.
        results: the results so far, of which `parameters` and `epochs` are read.
        network: the network with the last weights.
        data: the run's data.

    Returns:
        Entries of results.json; none if the study has no training like this one.
    """
    size = {"epochs": results["epochs"], "parameters": results["parameters"]}
    accuracies = forecast.measure_accuracies(network, data)
    features = forecast.forecast_features(accuracies, images=len(data.train_split), config=config, **size)
    accuracy = forecast.forecast_accuracy(features)
    if accuracy is None:
        return {}
    verdict = judge_forecast(accuracies[0], accuracy, config, train_images=len(data.train_split), **size)
    return {**_verdict_and_advice(verdict, config), **_interval_results("gap_forecast/accuracy", verdict.gap)}


def _verdict_and_advice(verdict: Verdict, config: DictConfig, *, lags: bool = False) -> dict[str, Any]:
    advice = [*(_advise_on_lag(config) if lags else []), *advise(verdict, config)]
    return {
        "verdict": verdict.kind,
        "verdict_rule": verdict.rule,
        "expected_gains": {
            gain.remedy: {**to_json_dict(gain.gain), "probability": gain.probability} for gain in verdict.gains
        },
        "advice": [training_command(config, suggestion.overrides) for suggestion in advice],
        "advice_reasons": [suggestion.reason for suggestion in advice],
    }


def _advise_on_lag(config: DictConfig) -> list[Advice]:
    """Suggest how evaluation catches up with the training; the measurements of the run are not final before."""
    longer = Advice(
        "first train longer: evaluation lags behind", (f"trainer.max_epochs={2 * config.trainer.max_epochs}",)
    )
    if not config.callbacks.get("ema"):
        return [longer]
    return [longer, Advice("or turn the average of the weights (EMA) off", ("~callbacks.ema",))]


def _best_epoch_gap(
    config: DictConfig, results: dict[str, Any], passes: ValidationPasses | None, probe_count: int, train_share: float
) -> dict[str, float | None]:
    """The gap of the kept weights without the optimism of their choice, if validation accuracy chose them.

    `ValidationPasses` estimates the optimism of the epoch with the highest accuracy. It has none for weights of another
    `monitor`, or of an epoch before the passes that a resumed run has kept.
    """
    monitor = OmegaConf.select(config, "callbacks.best.monitor") if results["chosen_on_validation"] else None
    if passes is None or monitor != "val/accuracy" or passes.best_epoch != results["best_epoch"]:
        return {}
    return _interval_results("gap_best/accuracy", passes.best_epoch_gap(probe_count, train_share))


def _interval_results(name: str, interval: Interval) -> dict[str, float | None]:
    """Entries of results.json for an interval, whose infinite bounds are None."""
    values = {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def count_multiply_adds(module: ImageClassifier) -> int:
    """Count the multiply-adds of the network's forward pass on one image."""
    network = module.network
    training = network.training
    image = torch.zeros(1, *module.image_shape, device=module.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(image)
    network.train(training)
    return int(counter.get_total_flops()) // 2
