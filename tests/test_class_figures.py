"""Figures of classes by the thousand are no larger than those of a hundred."""

import pytest
import torch
from matplotlib.figure import Figure

from fashion_cnn.metrics.classification import confusion_matrix, metrics_by_class
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.plots import training as pictures
from fashion_cnn.plots.evaluation import plot_by_class, plot_confusion
from fashion_cnn.retrieval.report import plot_outcome


def predictions_of(classes):
    """Each of the first half's images is recognised, the others are taken for the class before."""
    targets = torch.arange(classes).repeat_interleave(2)
    seen = torch.where(targets < classes // 2, targets, targets - 1)
    return Predictions(10 * torch.nn.functional.one_hot(seen, classes).float(), targets, torch.arange(len(targets)))


def names_of(classes):
    return [f"class {number}" for number in range(classes)]


@pytest.mark.parametrize(("classes", "numbered"), [(4, 4), (100, 100), (1000, 0)])
def test_a_confusion_matrix_is_numbered_while_it_can_be_read(classes, numbered):
    axes = Figure().subplots()
    plot_confusion(confusion_matrix(predictions_of(classes)), names_of(classes), axes, title="t")
    assert len(axes.texts) == numbered
    assert ("class 1" in [label.get_text() for label in axes.get_yticklabels()]) == bool(numbered)
    assert axes.images[0].get_array().shape == (classes, classes)


def test_figures_grow_up_to_a_hundred_classes_alone():
    def sizes(classes):
        names, seen = names_of(classes), predictions_of(classes)
        precision = {"1": {"value": 0.5, "low": 0.4, "high": 0.6}}
        searched = {"by_class": {name: {"precision": precision} for name in names}, "overall": {"curve": [0.5]}}
        search = plot_outcome({"searches": {"all": {"network": {**searched, "chance": 0.1}}}})["precision_by_class"]
        figures = (pictures.confusion(seen, seen, names), pictures.gap_by_class(seen, seen, names), search)
        return [tuple(figure.get_size_inches()) for figure in figures]

    small, hundred, thousand = map(sizes, (4, 100, 1000))
    assert hundred == thousand
    assert all(few[1] < many[1] for few, many in zip(small, hundred, strict=True))


def test_of_a_thousand_classes_those_that_are_recognised_least_are_shown():
    names, seen = names_of(1000), predictions_of(1000)
    rows = metrics_by_class(seen, names)
    axes = Figure().subplots()
    plot_by_class(rows, axes, title="t")
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert len(shown) == 100
    assert set(shown) <= {row.name for row in rows if row.f1 == 0}
    assert axes.get_ylabel() == "100 of 1,000 classes"


def test_classes_that_were_never_said_leave_their_precision_empty():
    names = names_of(120)
    said = Predictions(torch.eye(120)[:1].repeat(120, 1), torch.arange(120), torch.arange(120))
    axes = Figure().subplots()
    plot_by_class(metrics_by_class(said, names), axes, title="t")
    assert axes.get_legend_handles_labels()[1] == ["recall"]
