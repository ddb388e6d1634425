"""What an evaluation comes to: figures before and after calibration, as JSON and drawn."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from fashion_cnn.analysis.calibration import plot_reliability, reliability
from fashion_cnn.analysis.class_figures import inches
from fashion_cnn.analysis.confusion import confusion_matrix, plot_confusion
from fashion_cnn.analysis.figure_file import save_figure
from fashion_cnn.analysis.predictions import Predictions
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.figures import by_class, figures_of, selective_accuracy
from fashion_cnn.evaluation.measuring import Measured
from fashion_cnn.evaluation.plots import plot_by_class, plot_selective
from fashion_cnn.evaluation.temperature import fit_temperature
from fashion_cnn.runs import Run, as_typed, write_whole
from fashion_cnn.training.hardware import describe, device_for, precision_of

FIGURES_FILE = "evaluation.json"


def outcome_of(runs: Sequence[Run], measured: Measured) -> dict[str, Any]:
    """The figures of a measured split, with where they come from, as they are stored."""
    split, figures = measured.split, measured.figures
    accelerator = measured.config.trainer.accelerator
    return {
        "runs": [str(as_typed(run.path)) for run in runs],
        "split": split,
        **figures_of(measured.predictions, measured.data.class_names),
        # By the ruler, exactly as the training wrote them.
        "accuracy": figures[f"{split}/accuracy"],
        "loss": figures[f"{split}/loss"],
        "flip": {name: figures[f"{split}_flip/{name}"] for name in ("accuracy", "loss")},
        "calibrated": _calibrated(measured),
        "class_names": list(measured.data.class_names),
        "data_sha256": measured.fingerprint,
        "weights_sha256": [run.results().get("weights_sha256") for run in runs],
        "precision": precision_of(measured.config.trainer.precision, accelerator),
        "hardware": describe(device_for(accelerator)),
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
        "calibration_error": reliability(scaled).expected_error,
    }


def _scaled(predictions: Predictions, temperature: float) -> Predictions:
    return replace(predictions, logits=predictions.logits / temperature)


def write_outcome(outcome: dict[str, Any], measured: Measured, folder: Path) -> None:
    """Write the figures, and draw them, into `folder`. Raises UserError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): say out=DIR.") from error
    write_whole(folder / FIGURES_FILE, json.dumps(outcome, indent=2) + "\n")
    for name, figure in _drawn(outcome, measured).items():
        save_figure(figure, folder / f"{name}.png")


def _drawn(outcome: dict[str, Any], measured: Measured) -> dict[str, Figure]:
    predictions, names, split = measured.predictions, measured.data.class_names, measured.split
    figures = {name: Figure(figsize=size, layout="constrained") for name, size in _sizes(len(names)).items()}
    counts = confusion_matrix(predictions)
    plot_confusion(counts, names, figures["confusion"].subplots(), title=split)
    plot_by_class(by_class(predictions, names), figures["classes"].subplots(), title=split)
    plot_selective(selective_accuracy(predictions), figures["selective"].subplots(), title=split)
    before, after = figures["reliability"].subplots(1, 2)
    plot_reliability(reliability(predictions), before, title=f"{split}, as it is", color="C0")
    if calibrated := outcome["calibrated"]:
        scaled = _scaled(predictions, calibrated["temperature"])
        title = f"{split}, temperature {calibrated['temperature']:.2f}"
        plot_reliability(reliability(scaled), after, title=title, color="C2")
    else:
        after.set_axis_off()
    return figures


def _sizes(classes: int) -> dict[str, tuple[float, float]]:
    side = inches(classes, beside=2.4)
    return {
        "confusion": (side, side),
        "classes": (7, inches(classes, beside=1.4)),
        "selective": (6.4, 4.4),
        "reliability": (10, 4.6),
    }
