"""Evaluation of runs on a split: networks rebuilt from their directories, measured, and the results written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fashion_cnn.data import ImageDataModule, InMemoryDataset
from fashion_cnn.data.statistics import fingerprint
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import restore
from fashion_cnn.metrics.calibration import fit_temperature, reliability_diagram
from fashion_cnn.metrics.classification import (
    classification_metrics,
    confusion_matrix,
    metrics_by_class,
    selective_accuracy,
)
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.ensemble import LogitAverage
from fashion_cnn.models.hardware import describe_device, precision_context, resolve_precision, select_device
from fashion_cnn.plots.evaluation import plot_by_class, plot_confusion, plot_reliability, plot_selective
from fashion_cnn.plots.style import figure_inches, save_figure
from fashion_cnn.runs import Run, display_path, write_atomically
from fashion_cnn.training import build
from fashion_cnn.training.results import evaluate_splits

Split = Literal["val", "test"]
FIGURES_FILE = "evaluation.json"


@dataclass(frozen=True)
class Measured:
    """What a network, or several as one, says of a split.

    figures: `<split>/loss` and so on, as the training writes them into results.json. val: what it says of the
    validation images; None where the trainings kept none, or not the same.
    """

    config: DictConfig
    module: ImageClassifier
    data: ImageDataModule
    split: Split
    predictions: Predictions
    val: Predictions | None
    figures: dict[str, float]

    @cached_property
    def images(self) -> Tensor:
        """The split's images `(N, C, H, W)` uint8, in the order of the predictions."""
        split: InMemoryDataset = self.data.val_split if self.split == "val" else self.data.test_split
        return split.images_at(self.predictions.indices)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the split's images and labels."""
        return fingerprint(self.images, self.predictions.targets)

    def classify(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)` uint8, on the hardware and in the precision of the run."""
        accelerator, precision = self.config.trainer.accelerator, self.config.trainer.precision
        device = select_device(accelerator)
        with precision_context(precision, accelerator):
            return self.module.to(device).eval()(self.data.normalise(images.to(device)))


def measure_runs(runs: Sequence[Run], split: Split, *, data_root: str | None = None) -> Measured:
    """Measure the run's network, or the mean of several runs' networks, on `split`.

    data_root: where the data lie on this machine, if not where the run had them.
    Raises UserError where a checkpoint is not its run's, the runs are of different data, or there is no such split.
    """
    rebuilt = [rebuild(run, data_root) for run in runs]
    config, module, data = rebuilt[0]
    _require(split, runs[0], data)
    validated_alike = True
    # Of one run there is nothing to compare.
    images = {name: _images_of(name, data) for name in {split, "val"}} if len(runs) > 1 else {}
    for run, (_, _, other) in zip(runs[1:], rebuilt[1:], strict=True):
        if _described(other) != _described(data):
            raise UserError(
                f"{run.path} saw other data than {runs[0].path}: their answers cannot be averaged. Name runs of the "
                "same classes, image size and normalisation."
            )
        if _images_of(split, other) != images[split]:
            raise UserError(
                f"{run.path} has other {split} images than {runs[0].path}, and may have trained on those: they cannot "
                "be measured as one. Name runs of the same data and splits (data.split_seed, data.val_size)."
            )
        # That of the split itself was compared.
        validated_alike &= split == "val" or _images_of("val", other) == images["val"]
    if len(runs) > 1:
        module = ImageClassifier(
            network=LogitAverage([other.network for _, other, _ in rebuilt]),
            image_shape=data.image_shape,
            num_classes=data.num_classes,
        )
    figures, predictions = evaluate_splits(config, module, data, test=split == "test", flip_average=True)
    return Measured(
        config=config,
        module=module,
        data=data,
        split=split,
        predictions=predictions[split],
        val=predictions.get("val") if validated_alike else None,
        figures=figures,
    )


def _require(split: Split, run: Run, data: ImageDataModule) -> None:
    """Raises UserError where the run has no images of the split."""
    there = {"test": data.has_test, "val": data.val_size > 0}
    if there[split]:
        return
    lacks = {"test": "has no test images (data.test_share=0)", "val": "kept no validation images (data.val_size=0)"}
    others = [f"say split={other}" for other, is_there in there.items() if is_there]
    raise UserError(f"{run.path} {lacks[split]}: {''.join(others) or 'there are none to measure it on'}.")


def rebuild(run: Run, data_root: str | None) -> tuple[DictConfig, ImageClassifier, ImageDataModule]:
    """A run's config, its network with its best weights, and its data. Raises UserError where they do not fit."""
    config = run.config()
    # All of the split, on one machine, which may lack the hardware that it was trained on.
    limits = {"limit_val_batches": 1.0, "limit_test_batches": 1.0, "overfit_batches": 0.0, "num_nodes": 1}
    config.trainer = OmegaConf.merge(config.trainer, limits)
    if select_device(config.trainer.accelerator).type == "cpu":
        config.trainer.accelerator = "cpu"
    if data_root is not None:
        config.data.root = data_root
    data = build.data(config)
    module = build.module(config, data)
    restore(module, run)
    return config, module.eval(), data


def _described(data: ImageDataModule) -> tuple[object, ...]:
    """What two runs must share for their answers to be answers to the same question."""
    normalised = (data.pixel_mean.tolist(), data.pixel_scale.tolist())
    return (tuple(data.class_names), data.image_shape, data.background, *normalised)


def _images_of(split: Split, data: ImageDataModule) -> str:
    """The SHA-256 of a split: a run whose split is the same trained on none of its images."""
    data.setup("fit" if split == "val" else "test")
    members: InMemoryDataset = data.val_split if split == "val" else data.test_split
    return fingerprint(members.images, members.targets)


def outcome_of(runs: Sequence[Run], measured: Measured) -> dict[str, Any]:
    """The figures of a measured split, with where they come from, as they are stored."""
    split, figures = measured.split, measured.figures
    accelerator = measured.config.trainer.accelerator
    return {
        "runs": [str(display_path(run.path)) for run in runs],
        "split": split,
        **classification_metrics(measured.predictions, measured.data.class_names),
        # By the ruler, exactly as the training wrote them.
        "accuracy": figures[f"{split}/accuracy"],
        "loss": figures[f"{split}/loss"],
        "flip": {name: figures[f"{split}_flip/{name}"] for name in ("accuracy", "loss")},
        "calibrated": _calibrated(measured),
        "class_names": list(measured.data.class_names),
        "data_sha256": measured.fingerprint,
        "weights_sha256": [run.results().get("weights_sha256") for run in runs],
        "precision": resolve_precision(measured.config.trainer.precision, accelerator),
        "hardware": describe_device(select_device(accelerator)),
        "torch": torch.__version__,
    }


def _calibrated(measured: Measured) -> dict[str, float] | None:
    """Calibration after temperature scaling; None where there are no other images to fit the temperature on."""
    if measured.val is None or measured.split == "val":
        return None
    temperature = fit_temperature(measured.val)
    scaled = _scaled(measured.predictions, temperature)
    return {
        "temperature": temperature,
        "loss": scaled.losses.double().mean().item(),
        "calibration_error": reliability_diagram(scaled).expected_calibration_error,
    }


def _scaled(predictions: Predictions, temperature: float) -> Predictions:
    return replace(predictions, logits=predictions.logits / temperature)


def write_outcome(outcome: dict[str, Any], measured: Measured, folder: Path) -> None:
    """Write the figures, and draw them, into `folder`. Raises UserError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): say out=DIR.") from error
    write_atomically(folder / FIGURES_FILE, json.dumps(outcome, indent=2) + "\n")
    for name, figure in _drawn(outcome, measured).items():
        save_figure(figure, folder / f"{name}.png")


def _drawn(outcome: dict[str, Any], measured: Measured) -> dict[str, Figure]:
    predictions, names, split = measured.predictions, measured.data.class_names, measured.split
    figures = {name: Figure(figsize=size, layout="constrained") for name, size in _sizes(len(names)).items()}
    counts = confusion_matrix(predictions)
    plot_confusion(counts, names, figures["confusion"].subplots(), title=split)
    plot_by_class(metrics_by_class(predictions, names), figures["classes"].subplots(), title=split)
    plot_selective(selective_accuracy(predictions), figures["selective"].subplots(), title=split)
    before, after = figures["reliability"].subplots(1, 2)
    plot_reliability(reliability_diagram(predictions), before, title=f"{split}, as it is", color="C0")
    if calibrated := outcome["calibrated"]:
        scaled = _scaled(predictions, calibrated["temperature"])
        title = f"{split}, temperature {calibrated['temperature']:.2f}"
        plot_reliability(reliability_diagram(scaled), after, title=title, color="C2")
    else:
        after.set_axis_off()
    return figures


def _sizes(classes: int) -> dict[str, tuple[float, float]]:
    side = figure_inches(classes, beside=2.4)
    return {
        "confusion": (side, side),
        "classes": (7, figure_inches(classes, beside=1.4)),
        "selective": (6.4, 4.4),
        "reliability": (10, 4.6),
    }
