"""Reports of a search evaluation: JSON files, plots, and tables in the terminal."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from fashion_cnn.analysis.report import run_title
from fashion_cnn.data.batches import fingerprint
from fashion_cnn.errors import printable
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.metrics.intervals import MeanStd, to_json_dict
from fashion_cnn.metrics.ranking import NETWORK
from fashion_cnn.plots.evaluation import plot_precision_at_k, plot_precision_by_class
from fashion_cnn.plots.style import add_subtitle, figure_inches, save_figure
from fashion_cnn.retrieval.evaluation import (
    INSTANCE_METRICS,
    METRICS,
    METRICS_FILE,
    AlteredCopies,
    SearchEvaluation,
    SearchImages,
    stored_metric,
)
from fashion_cnn.retrieval.vectors import vector_dimensions
from fashion_cnn.runs import Run, create_folder, display_path, write_json
from fashion_cnn.terminal import print_table

SUMMARY_FILE = "summary.json"
_CLASS_METRICS = ("precision@1", "precision@10", "mAP@100")


def outcome_of(
    run: Run,
    split: str,
    network: TrainedNetwork,
    images: SearchImages,
    result: SearchEvaluation,
    altered: AlteredCopies | None,
    class_weight: float,
) -> dict[str, Any]:
    """Return the results with their provenance, as they are stored in JSON.

    Args:
        run: the run.
        split: name of the split of the queries.
        network: the run's network.
        images: queries and catalogue.
        result: the evaluation.
        altered: the altered copies that were searched by; None for none.
        class_weight: see `search_vectors`.
    """
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
    # The keys of a stored result are strings.
    stored: dict[str, Any] = json.loads(json.dumps(outcome))
    return stored


def _below_accuracy(result: SearchEvaluation) -> dict[str, float] | None:
    """Return the accuracy of the network minus the precision of its vectors, as fractions."""
    if result.accuracy is None:
        return None
    known = next(iter(result.searches.values()))[NETWORK].overall
    return {
        "precision_at_1": result.accuracy.estimate - known.precision[1].estimate,
        "map_at_100": result.accuracy.estimate - known.map_at_100.estimate,
    }


# Files


def write_outcome(outcome: dict[str, Any], folder: Path) -> None:
    """Write results and plots into `folder`. Raises UserError if it is not writable."""
    create_folder(folder, "out")
    write_json(folder / METRICS_FILE, outcome)
    run = Run(Path(outcome["run"]))
    config = run.config()
    name = run_title(run, {"name": config.name, "seed": config.seed})
    title = f"Search of similar images by class, {outcome['split']} set, {name}"
    for name, figure in plot_outcome(outcome).items():
        add_subtitle(figure, title)
        save_figure(figure, folder / f"{name}.png")
    outcome["written_to"] = str(display_path(folder))


def write_summary(summary: dict[str, Any], folder: Path) -> None:
    """Write the summary of several runs into `folder`. Raises UserError if it is not writable."""
    create_folder(folder, "out")
    write_json(folder / SUMMARY_FILE, summary)


def plot_outcome(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Plot stored results; returns the figures by name."""
    searches = outcome["searches"]
    classes = max(len(by_vectors[NETWORK]["by_class"]) for by_vectors in searches.values())
    width = 5.5 * len(searches)
    figures = {
        "precision_by_class": Figure(figsize=(width, figure_inches(classes, margin=1.6)), layout="constrained"),
        "precision_at_k": Figure(figsize=(width, 4.2), layout="constrained"),
    }
    for name, plot in (("precision_by_class", plot_precision_by_class), ("precision_at_k", plot_precision_at_k)):
        panels = figures[name].subplots(1, len(searches), squeeze=False)[0]
        for axes, (title, by_vectors) in zip(panels, searches.items(), strict=True):
            plot(by_vectors, axes, title=title)
    return figures


# Terminal


def print_outcome(outcome: dict[str, Any]) -> None:
    """Print the results of one run: overall, beside the accuracy of the network, by class, and for single products."""
    views = "averaged with their mirror images" if outcome["flip_average"] else "without mirror images"
    print(
        f"{outcome['run']}: {outcome['split']} set, vectors of {outcome['dimensions']} dimensions, "
        f"class_weight={outcome['class_weight']}, images {views}"
    )
    for name, by_vectors in outcome["searches"].items():
        network = by_vectors[NETWORK]
        print(f"\n{_capitalise(name)}: {network['overall']['queries']:,} queries, {network['catalogue']:,} products")
        overall = {vectors: search["overall"] for vectors, search in by_vectors.items()}
        available = [
            name for name, path in METRICS.items() if any(stored_metric(row, path) for row in overall.values())
        ]
        headings = [f"{name} (95%)" for name in available]
        rows = ([vectors, *(_mean(row, name) for name in available)] for vectors, row in overall.items())
        print_table(["vectors", *headings], rows, right=headings)
        print(f"Precision by chance: {network['chance']:.2%}")
    if accuracy := outcome["accuracy"]:
        below = outcome["below_accuracy"]
        print(
            f"\nClassification accuracy on these queries: {_interval(accuracy)}. Precision@1 is "
            f"{_points(below['precision_at_1'])} it, mAP@100 {_points(below['map_at_100'])}."
        )
    for name, by_vectors in outcome["searches"].items():
        _print_classes(name, by_vectors)
    if instances := outcome["instances"]:
        first = next(iter(instances.values()))
        print(
            f"\nAltered copies (severity {outcome['altered']['severity']}) of {first[NETWORK]['queries']:,} of "
            f"{outcome['catalogue']:,} products as queries for their originals: recall@1, recall@10"
        )
        rows = ([_readable(name), *map(_recalls, by_vectors.values())] for name, by_vectors in instances.items())
        print_table(["altered by", *first], rows, right=list(first))
    print(f"Results: {outcome['written_to']}")


def print_summary(summary: dict[str, Any]) -> None:
    """Print the mean ± standard deviation over several runs."""
    accuracy = f", accuracy {_mean_std(summary['accuracy'])}" if summary["accuracy"] else ""
    print(f"Mean ± standard deviation over {len(summary['runs'])} runs, {summary['split']} set{accuracy}:")
    for run, unseen in zip(summary["runs"], summary["unseen"], strict=True):
        print(printable(f"  {run}" + (f", without {', '.join(unseen)}" if unseen else "")))
    for name, search in summary["searches"].items():
        print(f"\n{_capitalise(name)} (precision by chance {search['chance']:.2%})")
        _print_summary_table(search["by_vectors"])
    for name, by_vectors in summary["instances"].items():
        print(f"\nAltered copies as queries for their originals: {_readable(name)}")
        _print_summary_table(by_vectors)


def _print_classes(name: str, by_vectors: dict[str, Any]) -> None:
    """Print the metrics of each class for the network and the first baseline."""
    compared = list(by_vectors)[:2]
    headings = [f"{metric}, {vectors}" for vectors in compared for metric in _CLASS_METRICS]
    rows = [
        [
            label,
            *(
                _mean(by_vectors[vectors]["by_class"][label], metric)
                for vectors in compared
                for metric in _CLASS_METRICS
            ),
        ]
        for label in by_vectors[NETWORK]["by_class"]
    ]
    print_table(["class", *headings], rows, right=headings, title=name)


def _print_summary_table(by_vectors: dict[str, Any]) -> None:
    names = [name for name, spread in next(iter(by_vectors.values())).items() if spread]
    rows = ((vectors, *(_mean_std(metrics[name]) for name in names)) for vectors, metrics in by_vectors.items())
    print_table(["vectors", *names], rows, right=names)


def _mean(metrics: dict[str, Any], name: str) -> str:
    mean = stored_metric(metrics, METRICS[name])
    return "" if mean is None else _interval(mean)


def _interval(mean: dict[str, float]) -> str:
    return f"{mean['value']:.2%} ({mean['low']:.1%} to {mean['high']:.1%})"


def _recalls(metrics: dict[str, Any]) -> str:
    means = (stored_metric(metrics, path) for path in INSTANCE_METRICS.values())
    return ", ".join(f"{mean['value']:.1%}" for mean in means if mean)


def _mean_std(spread: dict[str, Any] | None) -> str:
    return "" if spread is None else f"{MeanStd.of(spread['values']).format(100, 2)} %"


def _points(below: float) -> str:
    return f"{abs(below) * 100:.2f} points {'below' if below > 0 else 'above'}"


def _readable(corruption: str) -> str:
    return corruption.replace("_", " ")


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]
