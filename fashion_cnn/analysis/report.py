"""Texts of a finished run: report.md, and model_card.md after Mitchell et al., 2019."""

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig

from fashion_cnn.analysis.history import History, read_history
from fashion_cnn.data import ImageDataModule
from fashion_cnn.plots.style import save_figure
from fashion_cnn.plots.training import plot_curves
from fashion_cnn.runs import Run, write_atomically

_REPORT_ROWS = [
    ("train probe", "train"),
    ("validation", "val"),
    ("test", "test"),
    ("test, averaged with the mirrored view", "test_flip"),
    ("gap, train to validation", "gap"),
    ("gap, train to test", "gap_test"),
    ("running training average, last epoch", "running"),
]
_OPTIONAL_ROWS = {"test_flip"}
# The figures after the curves, each with what it shows; those that a run has not drawn are left out.
_REPORT_FIGURES = {
    "gap": "The gap over the epochs. Where the band leaves zero out, the gap is more than the luck of the draw.",
    "gap_by_class": "The gap class by class, with the best weights.",
    "confusion": "What is taken for what, with the best weights.",
    "mistakes": "The validation images that it gets wrong and is surest of. Some of these labels are open to question.",
    "reliability": "Calibration: on the dotted line, the network is right as often as it is sure.",
    "cartography": "How each training image was learned: mean and spread of its label's probability over the epochs.",
    "label_errors": "The training images whose label is likeliest to be wrong. All of them, ranked: `examples.csv`.",
}
_CARD_ROWS = {"train": "train probe", "val": "validation", "test": "test", "test_flip": "test, with the mirrored view"}


def write_report(run: Run, results: dict[str, Any]) -> None:
    """Draw the curves and write report.md into the run directory."""
    history = read_history(run)
    title = f"{results['name']}, seed {results['seed']}"
    run.plots.mkdir(exist_ok=True)
    curves = plot_curves(history, title=title, best_epoch=results["best_epoch"])
    save_figure(curves, run.plots / "curves.png")
    run.report_file.write_text(_report(run, results, history))


def _report(run: Run, results: dict[str, Any], history: History) -> str:
    folder = run.plots.name
    drawn = (
        f"![{said.partition('.')[0]}]({folder}/{name}.png)\n\n{said}\n\n"
        for name, said in _REPORT_FIGURES.items()
        if (run.plots / f"{name}.png").exists()
    )
    return f"""# {results["name"]}, seed {results["seed"]}

{results_summary(history, results)}

![Loss above accuracy over the epochs]({folder}/curves.png)

| | loss | accuracy |
|---|---:|---:|
{"".join(_row(label, prefix, results) for label, prefix in _REPORT_ROWS)}
The splits are measured by one ruler: the weights {_which_weights(results)}, \
in evaluation mode, on images as they are, by plain cross-entropy. The running average is what the training itself \
saw, with augmentation, dropout and weights that moved under it; it is no measure of the gap.

{"".join(drawn)}\
{results["parameters"]:,} parameters, {results["multiply_adds"]:,} multiply-adds an image. Trained in \
{results["seconds"]:.0f} s at {results["images_per_second"]:,.0f} images/s ({results["precision"]}, \
{results["hardware"]}; torch {results["torch"]}, lightning {results["lightning"]}). All settings: \
[{run.config_file.name}]({run.config_file.name}); all figures: [{run.metrics_file.name}]({run.metrics_file.name}), \
[{run.results_file.name}]({run.results_file.name}).
"""


def _which_weights(results: dict[str, Any]) -> str:
    if results["chosen_on_validation"]:
        return f"that were best on validation (after epoch {results['best_epoch']} of {results['epochs']})"
    return f"of the last epoch ({results['epochs']})"


def _row(label: str, prefix: str, results: dict[str, Any]) -> str:
    if f"{prefix}/loss" not in results:
        if prefix in _OPTIONAL_ROWS:
            return ""
        return f"| {label} | not measured | not measured |\n"
    sign = "+" if prefix.startswith("gap") else ""
    cells = [f"{results[f'{prefix}/{quantity}']:{sign}.4f}" for quantity in ("loss", "accuracy")]
    if f"{prefix}/loss_low" in results:
        for place, quantity in enumerate(("loss", "accuracy")):
            low, high = (results[f"{prefix}/{quantity}_{end}"] for end in ("low", "high"))
            cells[place] += f" ({low:+.4f} to {high:+.4f})"
    return f"| {label} | {cells[0]} | {cells[1]} |\n"


def results_summary(history: History, results: dict[str, Any]) -> str:
    """The verdict, what the curves and the gaps say, and what to try: Markdown that follows from the figures alone."""
    if "verdict" not in results:
        return "No validation pass was made while it trained, so there is no curve to judge it by."
    parts = [
        f"**Verdict: {results['verdict']}.** By the rule: {results['verdict_rule']}.",
        describe_curves(history, results),
        describe_gap(results),
    ]
    if results["advice"]:
        pairs = zip(results["advice_reasons"], results["advice"], strict=True)
        tries = "\n".join(f"- {reason}:\n  `{typed}`" for reason, typed in pairs)
        parts.append(f"What to try next:\n\n{tries}")
    return "\n\n".join(parts)


def describe_curves(history: History, results: dict[str, Any]) -> str:
    """What the curves of the loss show, in a sentence or two."""
    val, train = history["val/loss"], history["train/loss"]
    measured = np.isfinite(val) & np.isfinite(train)
    epochs, val, train = history.epochs[measured], val[measured], train[measured]
    lowest = int(val.argmin())
    if lowest == len(val) - 1:
        said = f"Validation loss was still at its lowest, {val[lowest]:.4f}, after the last epoch ({epochs[-1]})"
        return said + ("." if len(val) == 1 else ": up to there, more training did not harm it.")
    said = (
        f"Validation loss was lowest, {val[lowest]:.4f}, after epoch {epochs[lowest]} of {epochs[-1]}, and ended at "
        f"{val[-1]:.4f}, while the loss on the train probe went from {train[lowest]:.4f} to {train[-1]:.4f}."
    )
    if results["rising_since"] is not None:
        said += f" From epoch {results['rising_since']} on, one rose as the other fell."
    return said


def describe_gap(results: dict[str, Any]) -> str:
    """How wide the gaps are, whether that is more than chance, and where they come from."""
    said = (
        f"With the weights {_which_weights(results)}, "
        f"{results['train/accuracy']:.2%} of the train probe and {results['val/accuracy']:.2%} of the validation "
        f"images are recognised: a gap of {_points(results, 'gap')}."
    )
    if "gap_test/accuracy" in results:
        said += (
            f" Of the test images it recognises {results['test/accuracy']:.2%}: "
            f"a gap of {_points(results, 'gap_test')}."
        )
    if results["gap_last/epoch"] != results["best_epoch"]:
        last = f"After the last measured epoch ({results['gap_last/epoch']})"
        said += f" {last} the gap to validation was {_points(results, 'gap_last')}."
    if results["gap_carriers"]:
        *others, last = results["gap_carriers"]
        said += f" Half of the gap or more is in {', '.join(others) + ' and ' if others else ''}{last}."
    return (
        f"{said} The intervals hold 95% and speak of the choice of the images (accuracy: Newcombe, 1998; loss: Welch); "
        "what another seed changes is not in them."
    )


def _points(results: dict[str, Any], prefix: str) -> str:
    gap, low, high = (results[f"{prefix}/accuracy{end}"] for end in ("", "_low", "_high"))
    chance = "which holds zero: it may be chance" if low <= 0 <= high else "which leaves zero out"
    return (
        f"{gap * 100:+.2f} points, {abs(round(gap * 1000))} images in a thousand "
        f"(interval {low * 100:+.2f} to {high * 100:+.2f}, {chance})"
    )


def write_model_card(
    run: Run, config: DictConfig, data: ImageDataModule, results: dict[str, Any], exported: Sequence[str] = ()
) -> None:
    """Write the card of a finished run; exported: lines on the files that were made of it."""
    write_atomically(run.model_card_file, _card(config, data, results, exported))


def _card(config: DictConfig, data: ImageDataModule, results: dict[str, Any], exported: Sequence[str]) -> str:
    channels, height, width = data.image_shape
    colour = "grey" if channels == 1 else f"{channels} channels"
    typed = shlex.join(["python", "-m", "fashion_cnn.train", *(config.overrides or [])])
    rows = [
        f"| {label} | {results[f'{split}/accuracy']:.2%} | {results[f'{split}/loss']:.4f} |"
        for split, label in _CARD_ROWS.items()
        if f"{split}/accuracy" in results
    ]
    parts = [
        f"# Model card: {results['name']}, seed {results['seed']}",
        f"A convolutional network that sorts pictures of {height} x {width} pixels ({colour}) into {data.num_classes} "
        f"classes: {', '.join(data.class_names)}. {results['parameters']:,} parameters, "
        f"{results['multiply_adds']:,} multiply-adds an image.",
        f"**Data.** {data.about or type(data).__name__} Trained on {results['train_images']:,} images"
        + (f", watched on {len(data.val_split):,} others." if len(data.val_split) else "."),
        "**Intended use.** Research and teaching, and as the eye of a product search over images of the same kind. Not "
        "for decisions about people.",
    ]
    limits = [f"It knows these {data.num_classes} classes alone, and calls anything else one of them.", *data.limits]
    parts.append("**Limits.**\n\n" + "\n".join(f"- {limit}" for limit in limits))
    if rows:
        parts.append("**Figures.**\n\n| | accuracy | loss |\n|---|---:|---:|\n" + "\n".join(rows))
    if exported:
        parts.append("**Exported.**\n\n" + "\n".join(f"- {line}" for line in exported))
    parts.append(
        f"**How it was made.** `{typed}`, with torch {results['torch']} and lightning {results['lightning']}: "
        f"{results['epochs']} epochs in {results['precision']} on {results['hardware']}, finished at "
        f"{results['finished']}. "
        f"SHA-256 of the weights: `{results.get('weights_sha256', 'not recorded')}`."
    )
    return "\n\n".join(parts) + "\n"
