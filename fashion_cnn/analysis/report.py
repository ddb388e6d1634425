"""Texts of a finished run: `report.md`, and `model_card.md` after Mitchell et al., 2019 (arXiv 1810.03993)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig

from fashion_cnn.analysis.history import History, read_history
from fashion_cnn.analysis.memorisation import correlate_bundled_scores
from fashion_cnn.analysis.verdict import training_command
from fashion_cnn.data import ImageDataModule
from fashion_cnn.plots.style import add_subtitle, save_figure
from fashion_cnn.plots.training import plot_curves
from fashion_cnn.runs import Run, write_atomically
from fashion_cnn.runs.finding import run_id

_REPORT_ROWS = [
    ("train probe", "train"),
    ("validation", "val"),
    ("test", "test"),
    ("test, flip-averaged", "test_flip"),
    ("gap, train to validation", "gap"),
    ("gap, train to test", "gap_test"),
    ("running training average, last epoch", "running"),
]
_OPTIONAL_ROWS = {"test_flip"}
# Captions of the plots after the curves. Plots that a run does not have are left out.
_CAPTIONS = {
    "gap": "Gap between train probe and validation. Where the 95% interval excludes zero, the gap is significant.",
    "gap_by_class": "Accuracy gap by class, with the best weights.",
    "confusion": "Confusion matrices, with the best weights.",
    "mistakes": "Misclassified validation images of highest confidence. Some of their labels may be wrong.",
    "reliability": "Reliability diagram. On the dotted line, accuracy equals confidence.",
    "cartography": "Data map of the training images. The regions follow Swayamdipta et al., 2020 (arXiv 2009.10795).",
    "label_errors": "Likely label errors in the training set. `examples.csv` ranks all training images.",
}
_CARD_ROWS = {"train": "train probe", "val": "validation", "test": "test", "test_flip": "test, flip-averaged"}


def run_title(run: Run, results: dict[str, Any]) -> str:
    """Name a run in the title of a figure or report: `tiny, seed 0, run 1313a2`."""
    return f"{results['name']}, seed {results['seed']}, run {run_id(run.path)}"


def write_report(run: Run, results: dict[str, Any]) -> None:
    """Draw the curves of a run and write `report.md` into its directory."""
    history = read_history(run)
    run.plots.mkdir(exist_ok=True)
    best_epoch = results["best_epoch"] if results["chosen_on_validation"] else None
    curves = plot_curves(
        history,
        title="Loss and accuracy over the epochs",
        best_epoch=best_epoch,
        rising_since=results.get("rising_since"),
        training_loss=results.get("training_loss"),
        label_smoothing=results.get("label_smoothing", 0.0),
    )
    add_subtitle(curves, run_title(run, results))
    save_figure(curves, run.plots / "curves.png")
    write_atomically(run.report_file, _report(run, results, history))


def _report(run: Run, results: dict[str, Any], history: History) -> str:
    folder = run.plots.name
    plots = (
        f"![{caption.partition('.')[0]}]({folder}/{name}.png)\n\n{caption}\n\n"
        for name, caption in _CAPTIONS.items()
        if (run.plots / f"{name}.png").exists()
    )
    return f"""# {run_title(run, results)}

{results_summary(history, results)}

![Loss and accuracy over the epochs]({folder}/curves.png)

| | loss | accuracy |{"".join(f" {name} |" for name in results.get("metrics", ()))}
|---|---:|---:|{"---:|" * len(results.get("metrics", ()))}
{"".join(_row(label, prefix, results) for label, prefix in _REPORT_ROWS)}
All splits are evaluated alike: with the weights {_describe_weights(results)}, in evaluation mode, without \
augmentation, by plain cross-entropy. The running average is measured on the training batches, with augmentation, \
dropout and changing weights; it does not measure the gap.{_describe_training_loss(results)}

{"".join(plots)}{_describe_memorisation(run)}\
{results["parameters"]:,} parameters, {results["multiply_adds"]:,} multiply-adds per image. Trained in \
{results["seconds"]:.0f} s at {results["images_per_second"]:,.0f} images/s ({results["precision"]}, \
{results["hardware"]}; torch {results["torch"]}, lightning {results["lightning"]}). Config: \
[{run.config_file.name}]({run.config_file.name}); metrics: [{run.metrics_file.name}]({run.metrics_file.name}), \
[{run.results_file.name}]({run.results_file.name}).
"""


def _describe_memorisation(run: Run) -> str:
    """Describe how well the training dynamics of the run predict the memorisation scores of the package."""
    proxies = correlate_bundled_scores(run) if run.examples_file.exists() else []
    if not proxies:
        return ""
    listed = ", ".join(f"{proxy.name} {proxy.correlation:+.2f}" for proxy in proxies)
    return (
        f"`{run.examples_file.name}` has the memorisation scores of {proxies[0].images:,} training images, which come "
        f"with the package. Their rank correlation (Spearman) with the metrics of this run: {listed}.\n\n"
    )


def _describe_weights(results: dict[str, Any]) -> str:
    if results["chosen_on_validation"]:
        return f"of the best epoch on validation ({results['best_epoch']} of {results['epochs']})"
    return f"of the last epoch ({results['epochs']})"


def _describe_training_loss(results: dict[str, Any]) -> str:
    name, smoothing = results.get("training_loss"), results.get("label_smoothing")
    if smoothing and not name:
        return f" Its loss is higher than the others also because its labels are smoothed ({smoothing:g})."
    return f" Its loss is the one that was trained, {name}, and cannot be compared with the others." if name else ""


def _row(label: str, prefix: str, results: dict[str, Any]) -> str:
    metrics = results.get("metrics", [])
    if f"{prefix}/loss" not in results:
        return "" if prefix in _OPTIONAL_ROWS else f"| {label} |{' not measured |' * (2 + len(metrics))}\n"
    if prefix == "running" and "training_loss" in results:
        label = f"{label} (loss: {results['training_loss']})"
    sign = "+" if prefix.startswith("gap") else ""
    cells = []
    quantities = [("loss", 1, 4, ""), ("accuracy", 100, 2, " points" if sign else " %")]
    for quantity, scale, digits, unit in [*quantities, *((name, 1, 4, "") for name in metrics)]:
        name = f"{prefix}/{quantity}"
        if name not in results:
            cells.append("not measured")
            continue
        ends = [
            f"{results[f'{name}_{end}'] * scale:+.{digits}f}" for end in ("low", "high") if f"{name}_{end}" in results
        ]
        bounds = f" ({' to '.join(ends)})" if ends else ""
        cells.append(f"{results[name] * scale:{sign}.{digits}f}{unit}{bounds}")
    return f"| {label} | {' | '.join(cells)} |\n"


def results_summary(history: History, results: dict[str, Any]) -> str:
    """Summarise verdict, curves, gaps and advice as Markdown."""
    if "verdict" not in results:
        return "No verdict: no validation pass was made during training, and there is no forecast for one like this."
    last = results.get("gap_last/epoch")
    after = "After the last epoch" if last in (None, history.epochs[-1]) else f"After epoch {last}, the last measured"
    parts = [f"**Verdict: {results['verdict']}.** {after}, {results['verdict_rule']}."]
    if "gap/accuracy" in results:
        parts += [" ".join(filter(None, (describe_curves(history, results), describe_significance(history))))]
        parts += [describe_gap(results)]
    if lag := describe_lag(results):
        parts.insert(1, lag)
    if results["advice"]:
        pairs = zip(results["advice_reasons"], results["advice"], strict=True)
        commands = "\n".join(f"- {reason}:\n  `{command}`" for reason, command in pairs)
        parts.append(f"What to try next:\n\n{commands}")
    return "\n\n".join(parts)


def describe_curves(history: History, results: dict[str, Any]) -> str:
    """Describe the course of the validation loss in a sentence or two."""
    val, train = history["val/loss"], history["train/loss"]
    measured = np.isfinite(val) & np.isfinite(train)
    epochs, val, train = history.epochs[measured], val[measured], train[measured]
    lowest = int(val.argmin())
    if lowest == len(val) - 1:
        last = "last epoch" if epochs[-1] == history.epochs[-1] else "last measured epoch"
        text = f"Validation loss was lowest, {val[lowest]:.4f}, after the {last} ({epochs[-1]})"
        return text + ("." if len(val) == 1 else ": it had not started to rise.")
    text = (
        f"Validation loss was lowest, {val[lowest]:.4f}, after epoch {epochs[lowest]} of {epochs[-1]}, and ended at "
        f"{val[-1]:.4f}, while training loss went from {train[lowest]:.4f} to {train[-1]:.4f}."
    )
    if results["rising_since"] is not None:
        return (
            f"{text} From epoch {results['rising_since']} to the last, validation loss rose while training loss fell."
        )
    text += " No onset of overfitting is marked: "
    if "loss_rise" not in results:
        return f"{text}it was not measured on each image whether the rise exceeds the noise."
    return f"{text}the rise is within the noise, or training loss did not fall."


def describe_significance(history: History) -> str:
    """Name the epoch since which the interval of the accuracy gap excludes zero; an empty text if it does not."""
    low = history["gap/accuracy_low"]
    measured = np.isfinite(low)
    above = low[measured] > 0
    if not len(above) or not above[-1]:
        return ""
    first = len(above) - int(np.argmin(above[::-1])) if not above.all() else 0
    return f"The 95% interval of the accuracy gap excludes zero since epoch {history.epochs[measured][first]}."


def describe_gap(results: dict[str, Any]) -> str:
    """Describe the accuracy gaps, their significance and the classes that they come from."""
    text = (
        f"With the weights {_describe_weights(results)}, accuracy is {results['train/accuracy']:.2%} on the train "
        f"probe and {results['val/accuracy']:.2%} on validation: a gap of {_describe_interval(results, 'gap')}."
    )
    if "gap_test/accuracy" in results:
        gap = _describe_interval(results, "gap_test", like="gap")
        text += f" Test accuracy is {results['test/accuracy']:.2%}: a gap of {gap}."
    if results.get("chosen_on_validation") and "gap_best/accuracy" in results:
        gap = _describe_interval(results, "gap_best", like="gap")
        text += (
            " That epoch was chosen on these validation images, which flatters it; without this optimism, which the "
            f"bootstrap estimates, the gap is {gap}."
        )
    if results["gap_last/epoch"] != results["best_epoch"]:
        gap = _describe_interval(results, "gap_last", like="gap")
        text += f" After the last measured epoch ({results['gap_last/epoch']}) the gap to validation was {gap}."
    if results["gap_carriers"]:
        *others, last = results["gap_carriers"]
        text += f" At least half of the gap comes from {', '.join(others) + ' and ' if others else ''}{last}."
    return (
        f"{text} The 95% intervals cover the sampling of the images (accuracy: Newcombe, 1998; loss: Welch), not the "
        "variation over seeds."
    )


def describe_lag(results: dict[str, Any]) -> str:
    """Say that evaluation lags behind the training, see `evaluation_lag`; an empty text if it does not."""
    if "evaluation_lag" not in results:
        return ""
    running = results["running/accuracy"]
    return (
        f"Evaluation lags behind the training: in the last epoch, accuracy was {running:.1%} on the augmented training "
        f"batches and {running - results['evaluation_lag']:.1%} on the train probe. The averages that evaluation uses, "
        "of the weights (EMA) and in batch normalisation, need more training steps."
    )


def _describe_interval(results: dict[str, Any], prefix: str, like: str | None = None) -> str:
    """Describe a gap with its interval, and its significance if that differs from the gap named `like`."""
    if like and _interval_numbers(results, prefix) == _interval_numbers(results, like):
        return "the same"
    zero = _contains_zero(results, prefix)
    meaning = f", which {'contains zero: it may be chance' if zero else 'excludes zero'}"
    if like and zero == _contains_zero(results, like):
        meaning = ""
    return f"{_interval_numbers(results, prefix)}{meaning})"


def _interval_numbers(results: dict[str, Any], prefix: str) -> str:
    gap, low, high = (results[f"{prefix}/accuracy{bound}"] for bound in ("", "_low", "_high"))
    return (
        f"{gap * 100:+.2f} points, {abs(round(gap * 1000))} per 1,000 images "
        f"(95% interval {low * 100:+.2f} to {high * 100:+.2f}"
    )


def _contains_zero(results: dict[str, Any], prefix: str) -> bool:
    low, high = (results[f"{prefix}/accuracy_{bound}"] for bound in ("low", "high"))
    return bool(low <= 0 <= high)


def write_model_card(
    run: Run, config: DictConfig, data: ImageDataModule, results: dict[str, Any], exported: Sequence[str] = ()
) -> None:
    """Write the model card of a finished run.

    Args:
        run: the run.
        config: its config.
        data: its data, set up.
        results: its `results.json`.
        exported: lines on the exported files.
    """
    write_atomically(run.model_card_file, _card(run, config, data, results, exported))


def _card(run: Run, config: DictConfig, data: ImageDataModule, results: dict[str, Any], exported: Sequence[str]) -> str:
    channels, height, width = data.image_shape
    color = "greyscale" if channels == 1 else f"{channels} channels"
    command = training_command(config)
    network = str(config.model.network._target_).rpartition(".")[2]
    rows = [
        f"| {label} | {results[f'{split}/accuracy']:.2%} | {results[f'{split}/loss']:.4f} |"
        for split, label in _CARD_ROWS.items()
        if f"{split}/accuracy" in results
    ]
    validated = f", validated on {len(data.val_split):,}" if len(data.val_split) else ""
    limits = [
        f"It knows these {data.num_classes} classes only, and assigns any other image to one of them.",
        *data.limits,
    ]
    parts = [
        f"# Model card: {run_title(run, results)}",
        f"A network ({network}) that classifies images of {height} x {width} pixels ({color}) into "
        f"{data.num_classes} classes: {', '.join(data.class_names)}. {results['parameters']:,} parameters, "
        f"{results['multiply_adds']:,} multiply-adds per image.",
        f"**Training data.** {data.about or f'The data set of {type(data).__name__}.'} "
        f"Trained on {results['train_images']:,} images{validated}.",
        f"**Intended use.** {data.intended_use} Not for decisions about people.",
        "**Limitations.**\n\n" + "\n".join(f"- {limit}" for limit in limits),
    ]
    if rows:
        parts.append("**Metrics.**\n\n| | accuracy | loss |\n|---|---:|---:|\n" + "\n".join(rows))
    if exported:
        parts.append("**Exported.**\n\n" + "\n".join(f"- {line}" for line in exported))
    parts.append(
        f"**Training procedure.** `{command}`, with torch {results['torch']} and lightning {results['lightning']}: "
        f"{results['epochs']} epochs in {results['precision']} on {results['hardware']}, finished at "
        f"{results['finished']}. "
        f"SHA-256 of the weights: `{results.get('weights_sha256', 'not recorded')}`."
    )
    return "\n\n".join(parts) + "\n"
