"""Console output of the commands: settings at the start, metrics at the end, tables of evaluations and comparisons."""

import math
import shlex
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fashion_cnn.analysis.comparison import Comparison, comparison_table, conclude
from fashion_cnn.analysis.report import describe_lag
from fashion_cnn.analysis.settings import changed_settings
from fashion_cnn.analysis.verdict import training_command
from fashion_cnn.cli.errors import default_config
from fashion_cnn.data import ImageDataModule
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.hardware import describe_device
from fashion_cnn.runs import Run, display_path
from fashion_cnn.runs.overrides import round_value, short_names
from fashion_cnn.runs.trust import packages_to_trust, python_path_of
from fashion_cnn.terminal import print_table, print_text, table_console, wide_console

# Number of changed settings that are printed at the start of a training.
_MAX_CHANGES = 16
# Maximum length of a command, in characters, that each line of advice repeats.
_MAX_REPEATED = 100


def print_start(
    config: DictConfig,
    run: Run,
    module: ImageClassifier,
    data: ImageDataModule,
    trainer: Trainer,
    *,
    finished_epochs: int | None,
    brief: bool,
    config_dir: str,
) -> None:
    """Print what a training is: its command, the settings that differ from the default, sizes, device and directory.

    Args:
        config: the training's config.
        run: the run directory.
        module: the network to train.
        data: the data to train on.
        trainer: its trainer, whose limits of batches are stated.
        finished_epochs: number of finished epochs of a run that is resumed; None for a new one.
        brief: print the sizes and the directory in one line.
        config_dir: the folder conf/ with the default config.
    """
    console = wide_console()
    parameters = f"{sum(parameter.numel() for parameter in module.network.parameters()):,} parameters"
    images = _describe_images(data, trainer)
    resumed = "" if finished_epochs is None else _describe_resuming(finished_epochs, config.trainer.max_epochs)
    if brief:
        line = f"\n{config.name}: {parameters}; {images}. Writing to {display_path(run.path)}"
        line += f"; {resumed}" if resumed else ""
        console.print(line, soft_wrap=True, highlight=False)
        return
    console.print(training_command(config), soft_wrap=True, highlight=False)
    default, _ = default_config("train", config_dir)
    devices = trainer.num_devices * trainer.num_nodes
    rows = {
        "differs": _shorten(changed_settings(config, default)) or "nothing from the default",
        "network": f"{type(module.network).__name__}, {parameters}",
        "data": f"{images}, {data.num_classes} classes",
        "training": _describe_training(config),
        "device": f"{f'{devices} x ' if devices > 1 else ''}{describe_device(trainer.strategy.root_device)}, "
        f"{trainer.precision}",
        "directory": f"{display_path(run.path)}, all settings in {run.config_file.name}",
        **({"resuming": resumed} if resumed else {}),
    }
    for label, text in rows.items():
        # Paths and settings stay whole, even where they are wider than the terminal.
        wrapped = textwrap.fill(
            text,
            min(table_console().width, 120),
            initial_indent=f"  {label:11}",
            subsequent_indent=" " * 13,
            break_long_words=False,
            break_on_hyphens=False,
        )
        print(wrapped)
    print(flush=True)


def _describe_images(data: ImageDataModule, trainer: Trainer) -> str:
    """Describe the sizes of the splits, and what the limits of the trainer leave of them."""
    train, val = len(data.train_split), len(data.val_split)
    in_epoch = _count_used(train, data.batch_size, trainer.limit_train_batches)
    evaluated = _count_used(val, data.eval_batch_size, trainer.limit_val_batches)
    epochs, every = trainer.max_epochs or 0, trainer.check_val_every_n_epoch or 1
    last_pass = f", no validation after epoch {epochs - epochs % every} of {epochs}" if epochs % every else ""
    last_pass += f" (trainer.check_val_every_n_epoch={every})" if last_pass else ""
    return (
        f"{train:,} training images{f' ({in_epoch:,} of them per epoch)' if in_epoch < train else ''}, "
        f"{val:,} validation images{f' ({evaluated:,} of them used)' if evaluated < val else ''}{last_pass}"
    )


def _count_used(images: int, batch_size: int, limit: float | None) -> int:
    """Count the images in the batches that a limit of Lightning's Trainer leaves.

    Args:
        images: number of images of the split.
        batch_size: images in a batch.
        limit: a whole number of batches, or the fraction of all batches; None for all.
    """
    batches = math.ceil(images / batch_size)
    kept = limit if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))
    return min(images, kept * batch_size)


def _describe_resuming(finished_epochs: int, max_epochs: int) -> str:
    if not finished_epochs:
        return "from the start: no epoch was finished"
    if finished_epochs == max_epochs:
        return f"after epoch {finished_epochs} of {max_epochs}: the evaluation remains"
    return f"continuing after epoch {finished_epochs} of {max_epochs}"


def _shorten(changes: Sequence[str]) -> str:
    """Join the changed settings, at most as many as fit into a few lines."""
    more = len(changes) - _MAX_CHANGES
    return " ".join([*changes[:_MAX_CHANGES], *([f"… and {more} more"] if more > 0 else [])])


def _describe_training(config: DictConfig) -> str:
    """Describe epochs, batches, optimizer, schedule and regularisation in a line."""

    def class_name(part: DictConfig) -> str:
        return str(part._target_).rpartition(".")[2]

    optimizer = " ".join(
        f"{name}={config.optimizer[name]}" for name in ("lr", "weight_decay") if config.optimizer.get(name) is not None
    )
    parts = [
        f"{_count_epochs(config.trainer.max_epochs)} in batches of {config.data.batch_size} images",
        f"{class_name(config.optimizer)} {optimizer}, {class_name(config.schedule)} schedule",
        *(class_name(config[group]) for group in ("mixing", "distillation", "embedding_loss") if config.get(group)),
    ]
    if augmentation := [name for name, part in (config.data.get("augmentation") or {}).items() if part]:
        parts.append(f"augmentation {', '.join(augmentation)}")
    return "; ".join(parts)


def _count_epochs(number: int) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"


def print_end(results: dict[str, Any], run: Run, config: DictConfig, *, brief: bool) -> None:
    """Print the results of a finished run.

    Args:
        results: the contents of `results.json`.
        run: the run directory.
        config: the training's config.
        brief: leave out everything but the table of losses and accuracies, the verdict and a lag of the evaluation.
    """
    console = wide_console()
    console.print(results_table(results))
    if brief:
        if "verdict" in results:
            console.print(f"Verdict: {results['verdict']}.", highlight=False)
        if lag := describe_lag(results):
            console.print(lag, highlight=False)
        return
    epochs = _count_epochs(results["epochs"])
    minutes, seconds = divmod(round(results["seconds"]), 60)
    console.print(
        f"{epochs} in {minutes} min {seconds} s, {results['images_per_second']:,.0f} images/s "
        f"({results['precision']}, {results['hardware']}); {results['parameters']:,} parameters, "
        f"{results['multiply_adds'] / 1e6:.1f} M multiply-adds per image.",
        highlight=False,
    )
    if "verdict" in results:
        console.print(f"\nVerdict: {results['verdict']}: {results['verdict_rule']}.", highlight=False)
        if lag := describe_lag(results):
            console.print(lag, highlight=False)
        command = training_command(config)
        commands = _shorten_commands(results["advice"], command)
        if commands != results["advice"]:
            console.print(
                f"Next, repeat this command with the words after … added:\n  {command}", highlight=False, soft_wrap=True
            )
        for reason, advice in zip(results["advice_reasons"], commands, strict=True):
            console.print(f"  {reason}:\n    {advice}", highlight=False, soft_wrap=True)
    runs_dir = _runs_folder(run, config.runs_dir)
    folder = shlex.quote(runs_dir)
    list_option = "" if runs_dir == "runs" else f" runs_dir={folder}"
    console.print(
        f"\nRun directory: {run.path}\n"
        f"  report      {run.report_file}\n"
        f"  curves      python -m fashion_cnn.analysis.dashboard --logdir {folder}\n"
        f"  all runs    python -m fashion_cnn.runs{list_option}\n"
        f"  go further  {training_command(config, [f'init_from={run.path}'])}",
        highlight=False,
        soft_wrap=True,
    )
    packages = packages_to_trust(config)
    # Runs of older versions have no working_dir.
    if python_path := python_path_of(packages, Path(config.get("working_dir") or ".")):
        text = f"These commands find {', '.join(packages)} with PYTHONPATH={shlex.quote(python_path)} in front of them."
        console.print(text, highlight=False, soft_wrap=True)


def _runs_folder(run: Run, runs_dir: str) -> str:
    """Return the folder of all runs as a command finds it here: a run may be resumed from another working directory."""
    path = run.path.resolve()
    if path.is_relative_to(Path(runs_dir).resolve()):
        return runs_dir
    return str(next((parent for parent in path.parents if parent.name == Path(runs_dir).name), path.parent))


def _shorten_commands(commands: Sequence[str], repeated: str) -> list[str]:
    """Replace the words of a long command in others that only add words to it: `… remedy=none,cutmix -m`.

    A single command stays whole.
    """
    if len(commands) < 2:
        return list(commands)
    shortened = []
    for command in commands:
        added = Counter(shlex.split(command))
        added.subtract(shlex.split(repeated))
        is_longer = len(repeated) > _MAX_REPEATED and min(added.values(), default=0) >= 0
        # Flags come last: argparse does not accept overrides on both sides of a flag.
        words = sorted(added.elements(), key=lambda word: word.startswith("-"))
        shortened.append(f"… {shlex.join(words)}" if is_longer else command)
    return shortened


def results_table(results: dict[str, Any]) -> Table:
    """Return the table of loss and accuracy on each measured split, and of the measured gaps."""
    table = Table(title=f"{results['name']}, weights of epoch {results['best_epoch']}", title_justify="left")
    metrics = results.get("metrics", [])
    for heading in ("", "loss", "accuracy", *metrics):
        table.add_column(heading, justify="right" if heading else "left")
    rows = [
        ("train probe", "train", ""),
        ("validation", "val", ""),
        ("test", "test", ""),
        ("test, flip-averaged", "test_flip", ""),
        ("gap train-val", "gap", "+"),
        ("gap train-test", "gap_test", "+"),
    ]
    for label, prefix, sign in rows:
        if f"{prefix}/loss" in results:
            loss, accuracy = results[f"{prefix}/loss"], results[f"{prefix}/accuracy"]
            unit = " points" if sign else " %"
            others = (f"{results[f'{prefix}/{name}']:{sign}.4f}" for name in metrics)
            table.add_row(label, f"{loss:{sign}.4f}", f"{accuracy * 100:{sign}.2f}{unit}", *others)
    return table


def print_evaluation(outcome: dict[str, Any]) -> None:
    """Print the results of `fashion_cnn.evaluate`: metrics of the split, then of each class."""
    console = wide_console()
    runs, split = outcome["runs"], outcome["split"]
    name = runs[0] if len(runs) == 1 else f"Ensemble of {len(runs)} networks"
    console.print(f"{name}, {outcome['images']:,} {split} images", highlight=False, soft_wrap=True)
    table_console().print(_evaluation_table(outcome))
    headings = ("class", "precision", "95% of precision", "recall", "95% of recall", "F1", "images")
    rows = []
    for row in outcome["classes"]:
        shares = [cell for part in ("precision", "recall") for cell in _share_cells(row[part])]
        rows.append((row["name"], *shares, f"{row['f1']:.4f}", f"{row['images']:,}"))
    print_table(headings, rows, right=headings[1:], optional=("images", "F1", "95% of precision", "95% of recall"))
    if "robustness" in outcome:
        _print_robustness(console, outcome["robustness"])
    console.print(f"Written to {outcome['written_to']}", highlight=False, soft_wrap=True)


def _print_robustness(console: Console, robustness: dict[str, Any]) -> None:
    errors = robustness["corruption_errors"]
    relative = f", mean corruption error {errors['mean']:.1f}% relative to {errors['baseline']}" if errors else ""
    summary = f"Accuracy under corruptions: {robustness['mean']:.2%} on average{relative}"
    console.print(summary, highlight=False, soft_wrap=True)
    severities = ("severity 1", "2", "3", "4", "5")
    accuracies = (
        (name.replace("_", " "), *(f"{accuracy:.2%}" for accuracy in row))
        for name, row in robustness["accuracy"].items()
    )
    print_table(("corruption", *severities), accuracies, right=severities)
    scores = ("confidence", "energy")
    outliers = (
        (name.replace("_", " "), *(f"{row[score]['auroc']:.3f}" for score in scores))
        for name, row in robustness["outliers"].items()
    )
    print_table(("outside the classes", *(f"AUROC of {score}" for score in scores)), outliers)


def _evaluation_table(outcome: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    interval = f"({outcome['accuracy_low']:.2%} to {outcome['accuracy_high']:.2%})"
    flip = outcome["flip"] or {}
    rows = [
        ("accuracy, 95% interval", f"{outcome['accuracy']:.2%} {interval}"),
        *([("accuracy, flip-averaged", f"{flip['accuracy']:.2%}")] if flip else []),
        ("loss", f"{outcome['loss']:.4f}"),
        *([("loss, flip-averaged", f"{flip['loss']:.4f}")] if flip else []),
        ("macro F1", f"{outcome['macro_f1']:.4f}"),
        ("top-2 accuracy", f"{outcome['top2_accuracy']:.2%}"),
    ]
    for name, value in outcome["metrics"].items():
        rows += [(name, f"{value:.4f}"), *([(f"{name}, flip-averaged", f"{flip[name]:.4f}")] if flip else [])]
    rows += [
        (f"accuracy on the most confident {float(coverage):.0%}", f"{accuracy:.2%}")
        for coverage, accuracy in outcome["selective_accuracy"].items()
        if coverage != "1.0"
    ]
    rows.append(("calibration error, 95% interval", _calibration_error_cell(outcome)))
    if calibrated := outcome["calibrated"]:
        label = f"calibration error, temperature {calibrated['temperature']:.2f} (fitted on val)"
        rows.append((label, _calibration_error_cell(calibrated)))
    for row in rows:
        table.add_row(*row)
    return table


def _calibration_error_cell(metrics: dict[str, Any]) -> str:
    interval = f"({metrics['calibration_error_low']:.4f} to {metrics['calibration_error_high']:.4f})"
    return f"{metrics['calibration_error']:.4f} {interval}"


def _share_cells(share: dict[str, float] | None) -> tuple[str, str]:
    return ("", "") if share is None else (f"{share['value']:.2%}", f"{share['low']:.1%} to {share['high']:.1%}")


def print_export(outcome: dict[str, Any]) -> None:
    """Print the files that `fashion_cnn.export` wrote, with accuracy and latency relative to PyTorch."""
    console = wide_console()
    headings = ("", "file", "MB", "test", "val", "different predictions", "largest difference", "latency, ms", "speed")
    reference = outcome["ways"][0]["latency"]
    rows = []
    for way in outcome["ways"]:
        accuracies = (way[f"{split}_accuracy"] for split in ("test", "val"))
        cells = [
            way["name"],
            way["file"] or "",
            f"{way['bytes'] / 1e6:.2f}" if way["bytes"] else "",
            *("" if accuracy is None else f"{accuracy:.2%}" for accuracy in accuracies),
            str(way["differing"]),
            f"{way['max_difference']:.1e}",
            f"{way['latency'] * 1000:.3f}",
            f"{reference / way['latency']:.1f} x",
        ]
        rows.append(cells)
    print_table(headings, rows, right=headings[2:], optional=("largest difference", "different predictions", "val"))
    for remark in outcome["remarks"]:
        console.print(remark, highlight=False, soft_wrap=True)
    console.print(f"Written to {outcome['written_to']}", highlight=False, soft_wrap=True)


def print_hub_export(outcome: dict[str, Any]) -> None:
    """Print the files that `fashion_cnn.export format=hub` wrote."""
    rows = [[name, f"{size / 1e6:.2f}"] for name, size in outcome["files"].items()]
    print_table(("file", "MB"), rows, right=("MB",))
    wide_console().print(f"Written to {outcome['written_to']}", highlight=False, soft_wrap=True)


def print_comparison(comparison: Comparison, written: Path, drawn: Sequence[str]) -> None:
    """Print a comparison of runs.

    Args:
        comparison: groups of runs with the same settings, and the unfinished runs.
        written: directory of the written tables and plots.
        drawn: names of the plots; empty if none were drawn.
    """
    console = wide_console()
    headings, *rows = comparison_table(comparison)
    # Settings on the left, then numbers.
    names = short_names(headings[: len(comparison.factors)])
    headings = [names.get(heading, heading) for heading in headings]
    rows = [[*map(round_value, row[: len(names)]), *row[len(names) :]] for row in rows]
    numbers = [heading for heading in headings[max(len(comparison.factors), 1) :] if heading != "verdict"]
    optional = ("minutes", "best epoch", "train loss", "val loss", "gap in loss", "train acc. %", "seeds")
    hint = f"All are in {written.name}."
    print_table(headings, rows, right=numbers, optional=optional, hint=hint, settings=[*names.values()])
    for text in (conclude(comparison), *comparison.notes):
        print_text(text)
    for run in comparison.unfinished:
        message = f"Left out: {display_path(run.path)}: {run.describe_state()}"
        console.print(message, highlight=False, soft_wrap=True)
    console.print(
        f"{'Table and plots' if drawn else 'Table'}: {display_path(written)}", highlight=False, soft_wrap=True
    )
