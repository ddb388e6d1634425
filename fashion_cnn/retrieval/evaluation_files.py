"""What the measuring of a search comes to, as JSON and drawn."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from fashion_cnn.analysis.class_figures import inches
from fashion_cnn.analysis.figure_file import save_figure
from fashion_cnn.data.fingerprint import fingerprint
from fashion_cnn.errors import UserError
from fashion_cnn.prediction import TrainedNetwork
from fashion_cnn.retrieval.evaluating import NETWORK, Altered, Images, SearchEvaluation
from fashion_cnn.retrieval.evaluation_plots import plot_curves, plot_precision_by_class
from fashion_cnn.retrieval.evaluation_summary import FIGURES_FILE
from fashion_cnn.retrieval.vectors import dimensions_of
from fashion_cnn.runs import Run, as_typed, write_whole

SUMMARY_FILE = "summary.json"


def outcome_of(
    run: Run,
    split: str,
    network: TrainedNetwork,
    images: Images,
    result: SearchEvaluation,
    altered: Altered | None,
    class_weight: float,
) -> dict[str, Any]:
    """The figures with where they come from, as they are stored."""
    outcome = {
        "run": str(as_typed(run.path)),
        "split": split,
        "queries": len(images.queries),
        "catalogue": len(images.catalogue),
        "dimensions": dimensions_of(network, class_weight),
        "class_weight": class_weight,
        "flip_average": network.flip_average,
        "unseen": [images.class_names[label] for label in images.unseen],
        "altered": None if altered is None else asdict(altered),
        **asdict(result),
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
        "precision_at_1": result.accuracy.value - known.precision[1].value,
        "map_at_100": result.accuracy.value - known.map_at_100.value,
    }


def write_outcome(outcome: dict[str, Any], folder: Path) -> None:
    """Write the figures, and draw them, into `folder`. Raises UserError where it cannot be written."""
    _make(folder)
    write_whole(folder / FIGURES_FILE, json.dumps(outcome, indent=2) + "\n")
    for name, figure in drawn(outcome).items():
        save_figure(figure, folder / f"{name}.png")
    outcome["written_to"] = str(as_typed(folder))


def write_summary(summary: dict[str, Any], folder: Path) -> None:
    """Write what several runs come to into `folder`. Raises UserError where it cannot be written."""
    _make(folder)
    write_whole(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")


def drawn(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures of a stored outcome, by name."""
    searches = outcome["searches"]
    classes = max(len(found[NETWORK]["by_class"]) for found in searches.values())
    figures = {
        "precision_by_class": Figure(figsize=(5.5 * len(searches), inches(classes, beside=1.6)), layout="constrained"),
        "precision_at_k": Figure(figsize=(5.5 * len(searches), 4.2), layout="constrained"),
    }
    for name, plot in (("precision_by_class", plot_precision_by_class), ("precision_at_k", plot_curves)):
        panels = figures[name].subplots(1, len(searches), squeeze=False)[0]
        for axes, (title, found) in zip(panels, searches.items(), strict=True):
            plot(found, axes, title=title)
    return figures


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): say out=DIR.") from error
