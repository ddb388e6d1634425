"""report.md: what a run came to, with its curves and what they show in words."""

from typing import Any

import numpy as np

from fashion_cnn.analysis.curves import plot_curves
from fashion_cnn.analysis.history import History, read_history
from fashion_cnn.runs import Run

_ROWS = [
    ("train probe", "train"),
    ("validation", "val"),
    ("test", "test"),
    ("gap, train to validation", "gap"),
    ("gap, train to test", "gap_test"),
    ("running training average, last epoch", "running"),
]


def write_report(run: Run, results: dict[str, Any]) -> None:
    """Draw the curves and write report.md into the run directory."""
    history = read_history(run)
    title = f"{results['name']}, seed {results['seed']}"
    figure = plot_curves(history, title=title, best_epoch=results["best_epoch"])
    figure.savefig(run.curves_file, dpi=120)
    run.report_file.write_text(_report(run, results, history))


def _report(run: Run, results: dict[str, Any], history: History) -> str:
    return f"""# {results["name"]}, seed {results["seed"]}

{describe_curves(history, results)}

![Loss above accuracy over the epochs]({run.curves_file.name})

| | loss | accuracy |
|---|---:|---:|
{"".join(_row(label, prefix, results) for label, prefix in _ROWS)}
Train probe, validation and test are measured by one ruler: the weights that were best on validation
(after epoch {results["best_epoch"]} of {results["epochs"]}), in evaluation mode, on images as they are, by plain
cross-entropy. The running average is what the training itself saw, with augmentation, dropout and weights
that moved under it; it is no measure of the gap.

{results["parameters"]:,} parameters, {results["multiply_adds"]:,} multiply-adds an image. Trained in \
{results["seconds"]:.0f} s at {results["images_per_second"]:,.0f} images/s ({results["precision"]}, \
{results["hardware"]}; torch {results["torch"]}, lightning {results["lightning"]}). All settings: \
[{run.config_file.name}]({run.config_file.name}); all figures: [{run.metrics_file.name}]({run.metrics_file.name}), \
[{run.results_file.name}]({run.results_file.name}).
"""


def _row(label: str, prefix: str, results: dict[str, Any]) -> str:
    if f"{prefix}/loss" not in results:
        return f"| {label} | not measured | not measured |\n"
    sign = "+" if prefix.startswith("gap") else ""
    return f"| {label} | {results[f'{prefix}/loss']:{sign}.4f} | {results[f'{prefix}/accuracy']:{sign}.4f} |\n"


def describe_curves(history: History, results: dict[str, Any]) -> str:
    """What the curves show, in a few sentences; each follows from the figures alone."""
    val, train = history["val/loss"], history["train/loss"]
    measured = np.isfinite(val) & np.isfinite(train)
    if not measured.any():
        return "Without a validation split there is no gap to measure: the last weights stand for this run."
    epochs, val, train = history.epochs[measured], val[measured], train[measured]
    lowest = int(val.argmin())
    if lowest == len(val) - 1:
        said = f"Validation loss was still at its lowest, {val[lowest]:.4f}, after the last epoch ({epochs[-1]})"
        said += "." if len(val) == 1 else ": up to there, more training did not harm it."
    else:
        said = (
            f"Validation loss was lowest, {val[lowest]:.4f}, after epoch {epochs[lowest]} of {epochs[-1]}, "
            f"and ended at {val[-1]:.4f}, while the loss on the train probe went from "
            f"{train[lowest]:.4f} to {train[-1]:.4f}."
        )
    gap = results["gap/accuracy"]
    said += (
        f" With the weights that were best on validation, {results['train/accuracy']:.2%} of the training images and "
        f"{results['val/accuracy']:.2%} of the validation images are recognised: a gap of "
        f"{gap * 100:+.2f} points, or {abs(round(gap * 1000))} images in a thousand"
        f"{'' if gap >= 0 else ', in favour of validation'}."
    )
    if "gap_test/accuracy" in results:
        said += (
            f" Of the test images it recognises {results['test/accuracy']:.2%}, "
            f"{results['gap_test/accuracy'] * 100:+.2f} points below train."
        )
    return said
