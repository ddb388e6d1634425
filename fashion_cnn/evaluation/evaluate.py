"""Evaluation of trained networks on a split: metrics, calibration and their plots."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor

from fashion_cnn.analysis.report import run_title
from fashion_cnn.data import ImageDataModule, InMemoryDataset
from fashion_cnn.data.batches import fingerprint
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import NetworkRunner, load, load_data
from fashion_cnn.metrics.calibration import calibrate, reliability_diagram
from fashion_cnn.metrics.classification import ClassificationMetrics, classification_metrics
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.ensemble import LogitAverage
from fashion_cnn.models.hardware import describe_device, resolve_precision, select_device
from fashion_cnn.plots.evaluation import plot_by_class, plot_confusion, plot_reliability, plot_selective
from fashion_cnn.plots.style import LINE_COLORS, add_subtitle, figure_inches, save_figure
from fashion_cnn.runs import Run, create_folder, display_path, write_json
from fashion_cnn.runs.finding import run_id
from fashion_cnn.training import build
from fashion_cnn.training.results import evaluate_splits

Split = Literal["val", "test"]
METRICS_FILE = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """Results of a network, or of an ensemble of runs, on a split.

    Attributes:
        network: the network with its data module, on the hardware and in the precision of the run.
        split: the split's name.
        predictions: logits of the split's images.
        val: logits of the validation images; None if there are none, or if the runs have different ones.
        metrics: `<split>/loss` and so on, by the names in results.json.
        title: names of the runs, for figures.
    """

    network: NetworkRunner
    split: Split
    predictions: Predictions
    val: Predictions | None
    metrics: dict[str, float]
    title: str = ""

    @cached_property
    def images(self) -> Tensor:
        """The split's images `(N, C, H, W)` uint8, in the order of the predictions."""
        return _split_of(self.network.data, self.split).images_at(self.predictions.indices)

    @cached_property
    def classification(self) -> ClassificationMetrics:
        """Classification metrics of the predictions."""
        return classification_metrics(self.predictions, self.network.data.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the split's images and labels."""
        return fingerprint(self.images, self.predictions.targets)


def evaluate_runs(runs: Sequence[Run], split: Split, *, data_root: str | None = None) -> Evaluation:
    """Evaluate the network of a run, or the mean of the logits of several runs, on `split`.

    Args:
        runs: the run directories.
        split: the split to evaluate on.
        data_root: the directory of the data set, if it is no longer where the run found it.

    Raises:
        UserError: if a checkpoint does not belong to its run, the runs have different data, or the split is empty.
    """
    datamodules, modules = [load_data(run, data_root) for run in runs], [load(run) for run in runs]
    data, module = datamodules[0], modules[0]
    _check_split(split, runs[0], data)
    same_val = _check_same_data(split, runs, datamodules)
    if len(runs) > 1:
        module = ImageClassifier(
            network=LogitAverage([member.network for member in modules]),
            image_shape=data.image_shape,
            num_classes=data.num_classes,
            metrics=module.hparams.get("metrics"),
        )
    config = runs[0].config()
    # The whole split, on one machine, which may lack the hardware of the training.
    limits = {"limit_val_batches": 1.0, "limit_test_batches": 1.0, "overfit_batches": 0.0, "num_nodes": 1}
    config.trainer = OmegaConf.merge(config.trainer, limits)
    device = select_device(config.trainer.accelerator, config.trainer.devices)
    if device.type == "cpu":
        config.trainer.accelerator = "cpu"
    precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    flip_average = all(build.averages_flips(run.config()) for run in runs)
    metrics, predictions = evaluate_splits(config, module, data, test=split == "test", flip_average=flip_average)
    names = ", ".join(run_id(run.path) for run in runs)
    single = run_title(runs[0], {"name": config.name, "seed": config.seed})
    return Evaluation(
        network=NetworkRunner(module, data, device=device, precision=precision),
        split=split,
        predictions=predictions[split],
        val=predictions.get("val") if same_val else None,
        metrics=metrics,
        title=single if len(runs) == 1 else f"mean of the runs {names}",
    )


def _split_of(data: ImageDataModule, split: Split) -> InMemoryDataset:
    data.setup("fit" if split == "val" else "test")
    return data.val_split if split == "val" else data.test_split


def _check_split(split: Split, run: Run, data: ImageDataModule) -> None:
    available = {"test": data.has_test, "val": data.val_size > 0}
    if available[split]:
        return
    problem = {"test": "has no test set (data.test_share=0)", "val": "has no validation set (data.val_size=0)"}
    others = [f"use split={other}" for other, is_available in available.items() if is_available]
    raise UserError(f"{run.path} {problem[split]}: {''.join(others) or 'it cannot be evaluated'}.")


def _check_same_data(split: Split, runs: Sequence[Run], datamodules: Sequence[ImageDataModule]) -> bool:
    """Raise UserError unless all runs have the same `split`; return whether they have the same validation images."""
    if len(runs) == 1:
        return True
    expected = _input_format(datamodules[0])
    hashes = {name: _split_sha256(name, datamodules[0]) for name in {split, "val"}}
    same_val = True
    for run, data in zip(runs[1:], datamodules[1:], strict=True):
        if _input_format(data) != expected:
            raise UserError(
                f"{run.path} and {runs[0].path} differ in classes, image size or normalisation: their logits cannot be "
                "averaged."
            )
        if _split_sha256(split, data) != hashes[split]:
            raise UserError(
                f"{run.path} has other {split} images than {runs[0].path}, and may have trained on those: choose runs "
                "with the same data.split_seed and data.val_size."
            )
        same_val &= split == "val" or _split_sha256("val", data) == hashes["val"]
    return same_val


def _input_format(data: ImageDataModule) -> tuple[object, ...]:
    """Classes, image shape and normalisation, which networks must share for their logits to be averaged."""
    normalisation = (data.pixel_mean.tolist(), data.pixel_scale.tolist())
    return (tuple(data.class_names), data.image_shape, data.background, *normalisation)


def _split_sha256(split: Split, data: ImageDataModule) -> str:
    members = _split_of(data, split)
    return fingerprint(members.images, members.targets)


def evaluation_record(runs: Sequence[Run], evaluation: Evaluation) -> dict[str, Any]:
    """Metrics of an evaluation and their origin, as plain values for JSON."""
    network, split, metrics = evaluation.network, evaluation.split, evaluation.metrics
    names = network.module.metric_names
    return {
        "runs": [str(display_path(run.path)) for run in runs],
        "split": split,
        **evaluation.classification.to_dict(),
        # Exactly the values that the training wrote.
        "accuracy": metrics[f"{split}/accuracy"],
        "loss": metrics[f"{split}/loss"],
        "metrics": {name: metrics[f"{split}/{name}"] for name in names[2:]},
        # Measured for trainings on mirrored images, see `averages_flips`.
        "flip": {name: metrics[f"{split}_flip/{name}"] for name in names} if f"{split}_flip/loss" in metrics else None,
        "calibrated": _calibrated_metrics(evaluation),
        "class_names": list(network.data.class_names),
        "data_sha256": evaluation.fingerprint,
        "weights_sha256": [run.results().get("weights_sha256") for run in runs],
        "precision": network.precision,
        "hardware": describe_device(network.module.device),
        "torch": torch.__version__,
    }


def _calibrated_metrics(evaluation: Evaluation) -> dict[str, float] | None:
    """Loss and calibration error after temperature scaling; None without other images to fit the temperature on."""
    if evaluation.val is None or evaluation.split == "val":
        return None
    temperature = calibrate(evaluation.val).temperature
    scaled = _scaled(evaluation.predictions, temperature)
    calibration_error = reliability_diagram(scaled).calibration_error_interval()
    return {
        "temperature": temperature,
        "loss": scaled.losses.double().mean().item(),
        "calibration_error": calibration_error.estimate,
        "calibration_error_low": calibration_error.low,
        "calibration_error_high": calibration_error.high,
    }


def _scaled(predictions: Predictions, temperature: float) -> Predictions:
    return replace(predictions, logits=predictions.logits / temperature)


def write_evaluation(record: dict[str, Any], evaluation: Evaluation, folder: Path) -> None:
    """Write the record of an evaluation and its plots into `folder`.

    Args:
        record: result of `evaluation_record`.
        evaluation: the evaluation that it describes.
        folder: the directory, which is created.

    Raises:
        UserError: if the directory cannot be written.
    """
    create_folder(folder, "out")
    write_json(folder / METRICS_FILE, record)
    for name, figure in _plots(record, evaluation).items():
        add_subtitle(figure, evaluation.title)
        save_figure(figure, folder / f"{name}.png")


def _plots(record: dict[str, Any], evaluation: Evaluation) -> dict[str, Figure]:
    metrics, names = evaluation.classification, evaluation.network.data.class_names
    split = {"val": "validation set", "test": "test set"}[evaluation.split]
    side = figure_inches(len(names), margin=2.4)
    sizes = {
        "confusion": (side, side),
        "classes": (7, figure_inches(len(names), margin=1.4)),
        "selective": (6.4, 4.4),
        "reliability": (10 if record["calibrated"] else 5.6, 4.8),
    }
    figures = {name: Figure(figsize=size, layout="constrained") for name, size in sizes.items()}
    plot_confusion(metrics.confusion, names, figures["confusion"].subplots(), title=f"Confusion matrix, {split}")
    plot_by_class(metrics.classes, figures["classes"].subplots(), title=split)
    plot_selective(metrics.selective_accuracy, figures["selective"].subplots(), title=split)
    figures["reliability"].suptitle("Reliability diagram: accuracy against confidence")
    calibrated = record["calibrated"]
    panels = figures["reliability"].subplots(1, 2 if calibrated else 1, squeeze=False)[0]
    plot_reliability(metrics.reliability, panels[0], title=f"{split}, as it is", color=LINE_COLORS[0])
    if calibrated:
        scaled = _scaled(evaluation.predictions, calibrated["temperature"])
        title = f"{split}, temperature {calibrated['temperature']:.2f}"
        plot_reliability(reliability_diagram(scaled), panels[1], title=title, color=LINE_COLORS[2])
    return figures
