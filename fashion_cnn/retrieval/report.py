"""Reports of a search evaluation: JSON, figures, and tables in the terminal."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table

from fashion_cnn.data.statistics import fingerprint
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.metrics.intervals import MeanStd, to_json_dict
from fashion_cnn.metrics.ranking import NETWORK
from fashion_cnn.plots.evaluation import plot_precision_at_k, plot_precision_by_class
from fashion_cnn.plots.style import figure_inches, save_figure
from fashion_cnn.retrieval.evaluation import (
    INSTANCE_METRICS,
    METRICS,
    METRICS_FILE,
    AlteredCopies,
    Figures,
    Images,
    SearchEvaluation,
    stored_metric,
)
from fashion_cnn.retrieval.vectors import vector_dimensions
from fashion_cnn.runs import Run, display_path, write_atomically
from fashion_cnn.terminal import wide_console

SUMMARY_FILE = "summary.json"
_TOLD_BY_CLASS = ("precision@1", "precision@10", "mAP@100")


def outcome_of(
    run: Run,
    split: str,
    network: TrainedNetwork,
    images: Images,
    result: SearchEvaluation,
    altered: AlteredCopies | None,
    class_weight: float,
) -> dict[str, Any]:
    """The figures with where they come from, as they are stored."""
    outcome = {
        "run": str(display_path(run.path)),
        "split": split,
        "queries": len(images.queries),
        "catalogue": len(images.catalogue),
        "dimensions": vector_dimensions(network, class_weight),
        "class_weight": class_weight,
        "flip_average": network.flip_average,
        "unseen": [images.class_names[label] for label in images.unseen],
        "altered": None if altered is None else asdict(altered),
        **to_json_dict(result),
        "below_accuracy": _below_accuracy(result),
        "data_sha256": {
            "queries": fingerprint(images.queries, images.query_labels),
            "catalogue": fingerprint(images.catalogue, images.catalogue_labels),
        },
        "weights_sha256": run.results().get("weights_sha256"),
        "torch": torch.__version__,
    }
    # As it will be read again: the keys are texts.
    stored: dict[str, Any] = json.loads(json.dumps(outcome))
    return stored


def _below_accuracy(result: SearchEvaluation) -> dict[str, float] | None:
    """How far search by the network's vectors is under the network's own accuracy, in shares of 1."""
    if result.accuracy is None:
        return None
    known = next(iter(result.searches.values()))[NETWORK].overall
    return {
        "precision_at_1": result.accuracy.estimate - known.precision[1].estimate,
        "map_at_100": result.accuracy.estimate - known.map_at_100.estimate,
    }


def write_outcome(outcome: dict[str, Any], folder: Path) -> None:
    """Write the figures, and draw them, into `folder`. Raises UserError where it cannot be written."""
    _make(folder)
    write_atomically(folder / METRICS_FILE, json.dumps(outcome, indent=2) + "\n")
    for name, plot in plot_outcome(outcome).items():
        save_figure(plot, folder / f"{name}.png")
    outcome["written_to"] = str(display_path(folder))


def write_summary(summary: dict[str, Any], folder: Path) -> None:
    """Write what several runs come to into `folder`. Raises UserError where it cannot be written."""
    _make(folder)
    write_atomically(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")


def plot_outcome(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures of a stored outcome, by name."""
    searches = outcome["searches"]
    classes = max(len(found[NETWORK]["by_class"]) for found in searches.values())
    figures = {
        "precision_by_class": Figure(
            figsize=(5.5 * len(searches), figure_inches(classes, margin=1.6)), layout="constrained"
        ),
        "precision_at_k": Figure(figsize=(5.5 * len(searches), 4.2), layout="constrained"),
    }
    for name, plot in (("precision_by_class", plot_precision_by_class), ("precision_at_k", plot_precision_at_k)):
        panels = figures[name].subplots(1, len(searches), squeeze=False)[0]
        for axes, (title, found) in zip(panels, searches.items(), strict=True):
            plot(found, axes, title=title)
    return figures


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): say out=DIR.") from error


def print_outcome(outcome: dict[str, Any]) -> None:
    """Print what one run comes to: each search, beside the network's accuracy, then by class, then single products."""
    console = wide_console()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    seen = "each with its mirror image" if outcome["flip_average"] else "as they are"
    say(
        f"{outcome['run']}: vectors of {outcome['dimensions']} numbers, {outcome['class_weight']:.0%} of a similarity "
        f"by class; pictures of {outcome['split']} {seen}"
    )
    for name, found in outcome["searches"].items():
        first = found[NETWORK]
        say(f"\n{_capital(name)}: {first['overall']['queries']:,} queries, {first['catalogue']:,} products")
        console.print(_by_vectors({whose: search["overall"] for whose, search in found.items()}, METRICS))
        say(f"By chance: {first['chance']:.2%}")
    if outcome["accuracy"]:
        below = outcome["below_accuracy"]
        say(
            f"\nThe network's own accuracy on these queries: {_cell(outcome['accuracy'])}. Precision@1 is "
            f"{_points(below['precision_at_1'])} it, mAP@100 {_points(below['map_at_100'])}."
        )
    for name, found in outcome["searches"].items():
        console.print(_by_class(name, found))
    if outcome["instances"]:
        altered = outcome["altered"]
        count = next(iter(next(iter(outcome["instances"].values())).values()))["queries"]
        say(
            f"\nAltered copies (severity {altered['severity']}) of {count:,} of {outcome['catalogue']:,} products find "
            "their originals: recall@1, recall@10"
        )
        console.print(_instances(outcome["instances"]))
    say(f"Figures: {outcome['written_to']}")


def print_summary(summary: dict[str, Any]) -> None:
    """Print the mean ± standard deviation of several runs."""
    console = wide_console()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    said = f", accuracy {_spread(summary['accuracy'])}" if summary["accuracy"] else ""
    say(f"Mean ± standard deviation over {len(summary['runs'])} runs, {summary['split']}{said}:")
    for run, unseen in zip(summary["runs"], summary["unseen"], strict=True):
        say(f"  {run}" + (f", without {', '.join(unseen)}" if unseen else ""))
    for name, found in summary["searches"].items():
        say(f"\n{_capital(name)} (by chance {found['chance']:.2%})")
        console.print(_spreads(found["by_vectors"]))
    for name, by_vectors in summary["instances"].items():
        say(f"\nAltered copies find their originals: {name.replace('_', ' ')}")
        console.print(_spreads(by_vectors))


def _by_vectors(measures: dict[str, Any], figures: Figures) -> Table:
    table = Table("vectors")
    shown = {name: path for name, path in figures.items() if any(stored_metric(one, path) for one in measures.values())}
    for name in shown:
        table.add_column(f"{name} (95%)", justify="right")
    for whose, one in measures.items():
        table.add_row(whose, *(_cell(stored_metric(one, path)) for path in shown.values()))
    return table


def _instances(instances: dict[str, Any]) -> Table:
    table = Table("altered by")
    for whose in next(iter(instances.values())):
        table.add_column(whose, justify="right")
    for name, by_vectors in instances.items():
        cells = (
            ", ".join(
                f"{found['value']:.1%}" for path in INSTANCE_METRICS.values() if (found := stored_metric(one, path))
            )
            for one in by_vectors.values()
        )
        table.add_row(name.replace("_", " "), *cells)
    return table


def _by_class(name: str, found: dict[str, Any]) -> Table:
    beside = list(found)[1:2]
    table = Table(title=name, title_justify="left")
    table.add_column("class")
    for whose in (NETWORK, *beside):
        for told in _TOLD_BY_CLASS:
            table.add_column(f"{told}, {whose}", justify="right")
    for label, measures in found[NETWORK]["by_class"].items():
        cells = [stored_metric(measures, METRICS[told]) for told in _TOLD_BY_CLASS]
        for whose in beside:
            cells += [stored_metric(found[whose]["by_class"][label], METRICS[told]) for told in _TOLD_BY_CLASS]
        table.add_row(label, *map(_cell, cells))
    return table


def _spreads(by_vectors: dict[str, Any]) -> Table:
    names = [name for name, spread in next(iter(by_vectors.values())).items() if spread]
    table = Table("vectors")
    for name in names:
        table.add_column(name, justify="right")
    for whose, figures in by_vectors.items():
        table.add_row(whose, *(_spread(figures[name]) for name in names))
    return table


def _cell(mean: dict[str, float] | None) -> str:
    return "" if mean is None else f"{mean['value']:.2%} ({mean['low']:.1%} to {mean['high']:.1%})"


def _spread(spread: dict[str, Any] | None) -> str:
    return "" if spread is None else f"{MeanStd.of(spread['values']).format(100, 2)} %"


def _points(below: float) -> str:
    return f"{abs(below) * 100:.2f} points {'under' if below > 0 else 'over'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
