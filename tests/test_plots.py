"""Plots of all kinds: literal labels, atomic files, and a size that is bounded for many classes."""

import itertools
import os
from types import SimpleNamespace

import pytest
import torch
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import ImageFile
from test_pictures import png_with_header_size

from fashion_cnn.evaluation.robustness_report import plot_corruptions
from fashion_cnn.inference.explain import Explanation, draw, neighbour_caption
from fashion_cnn.metrics.classification import confusion_matrix, metrics_by_class
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.plots.evaluation import plot_by_class, plot_confusion, plot_precision_by_class
from fashion_cnn.plots.style import add_subtitle, plot_thumbnails, save_figure
from fashion_cnn.plots.training import (
    plot_confident_errors,
    plot_confusion_matrices,
    plot_data_map,
    plot_gap_by_class,
    plot_reliability_diagrams,
)
from fashion_cnn.retrieval.output import contact_sheet
from fashion_cnn.retrieval.products import encode_png
from fashion_cnn.retrieval.report import plot_outcome

# Parsed as math, the first is invalid; the second is a file name in another encoding.
NAMES = ["$5_$10", os.fsdecode(b"caf\xe9"), "$x$"]
PREDICTIONS = Predictions(torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 0, 1, 1]), torch.arange(6))


def on_axes(plot, *arguments):
    figure = Figure()
    plot(*arguments, figure.subplots(), title="title")
    return figure


def explanation():
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    return draw(
        Explanation(NAMES[0], image, image[0] / 1.0, image[0] / 1.0, [(image, name) for name in NAMES]),
        torch.zeros(8, 8, 3, dtype=torch.uint8).numpy(),
    )


def results_sheet():
    from PIL import Image

    thumbnail = encode_png(Image.new("L", (8, 8)))
    return contact_sheet(
        [SimpleNamespace(title=n, id=n, category=n, price=1, similarity=1, thumbnail=thumbnail) for n in NAMES]
    )


def a_hit(thumbnail):
    return SimpleNamespace(title="t", id="1", category="c", price=1, similarity=1, thumbnail=thumbnail)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n0 0 64 64 rectfill showpage\n%%EOF\n"


@pytest.mark.parametrize("thumbnail", [EPS, png_with_header_size(13_000, 13_000), b"", b"<html>"])
def test_a_contact_sheet_opens_only_small_pictures_of_known_formats(monkeypatch, thumbnail):
    # Pillow would start Ghostscript to decode an EPS.
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels are decoded"))
    figure = contact_sheet([a_hit(thumbnail)])
    (drawn,) = figure.axes[0].images
    assert drawn.get_array().tolist() == [[[128, 128, 128, 255]]]


def search_plot():
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    by_name = {"by_class": {name: {"precision": {"1": interval}} for name in NAMES}}
    return on_axes(plot_precision_by_class, {"network": by_name})


@pytest.mark.parametrize(
    "plot",
    [
        lambda: plot_confusion_matrices(PREDICTIONS, PREDICTIONS, NAMES),
        lambda: plot_gap_by_class(PREDICTIONS, PREDICTIONS, NAMES),
        lambda: plot_thumbnails(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), NAMES, title="title"),
        lambda: on_axes(plot_by_class, metrics_by_class(PREDICTIONS, NAMES)),
        search_plot,
        explanation,
        results_sheet,
    ],
    ids=["confusion", "gap by class", "thumbnails", "by class", "search", "explanation", "contact sheet"],
)
def test_names_are_drawn_literally(tmp_path, plot):
    figure = plot()
    save_figure(figure, tmp_path / "figure.png")
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert sum("5_" in text for text in texts) >= 1
    assert not any(map(is_math_text, texts))


def test_titles_and_labels_of_a_small_confusion_matrix_do_not_overlap():
    figure = plot_confusion_matrices(PREDICTIONS, PREDICTIONS, ["zero", "one", "two"])
    add_subtitle(figure, "lenet, seed 0, run 7fa02e")
    figure.draw_without_rendering()
    title = figure._suptitle.get_window_extent()
    left, right = (axes.title.get_window_extent() for axes in figure.axes)
    assert title.y0 > max(left.y1, right.y1)
    assert left.x1 < right.x0
    assert min(axes.xaxis.label.get_window_extent().y0 for axes in figure.axes) > 0


GARMENTS = ["Trouser", "Ankle boot", "T-shirt/top"]


def confident_errors_plot():
    logits = torch.full((40, 3), -4.0)
    logits[:, 1] = 4.0
    predictions = Predictions(logits, torch.arange(40) % 2 * 2, torch.arange(40))
    split = SimpleNamespace(images_at=lambda indices: torch.zeros(len(indices), 1, 28, 28, dtype=torch.uint8))
    return plot_confident_errors(predictions, split, GARMENTS)


def explanation_with_long_captions():
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    neighbours = [(image, neighbour_caption("T-shirt/top", 59_999, 0.98))] * 6
    return draw(
        Explanation("shirt.jpg", image, image[0] / 1.0, image[0] / 1.0, neighbours),
        torch.zeros(280, 280, 3, dtype=torch.uint8).numpy(),
    )


@pytest.mark.parametrize(
    "plot",
    [
        confident_errors_plot,
        explanation_with_long_captions,
        lambda: plot_corruptions(torch.zeros(1, 28, 28, dtype=torch.uint8)),
    ],
    ids=["confident errors", "explanation", "corruptions"],
)
def test_captions_are_legible_at_the_width_of_a_page_and_do_not_overlap(plot):
    figure = plot()
    figure.draw_without_rendering()
    parts = [figure, *figure.subfigs]
    texts = [text for part in parts for text in part.texts if text.get_text()]
    texts += [text for axes in figure.axes for text in (*axes.texts, axes.title) if text.get_text()]
    # Points of the smallest text on a page of A4, whose text is 6.3 inches wide.
    assert min(text.get_fontsize() for text in texts) * min(1, 6.3 / figure.get_figwidth()) >= 5
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_interrupted_write_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / f"{'long ' * 50}.png"
    save_figure(Figure(), path)
    before = path.read_bytes()

    def interrupt(figure, file, **_):
        (file.open("wb") if hasattr(file, "open") else file).write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_figure(Figure(), path)
    assert path.read_bytes() == before


def half_correct_predictions(classes):
    """Two images per class: correct in the first half of the classes, else predicted as the class before."""
    targets = torch.arange(classes).repeat_interleave(2)
    predicted = torch.where(targets < classes // 2, targets, targets - 1)
    return Predictions(
        10 * torch.nn.functional.one_hot(predicted, classes).float(), targets, torch.arange(len(targets))
    )


def class_names(classes):
    return [f"class {number}" for number in range(classes)]


@pytest.mark.parametrize(("classes", "numbered"), [(4, 4), (100, 100), (1000, 0)])
def test_confusion_matrix_has_numbers_for_at_most_a_hundred_classes(classes, numbered):
    axes = Figure().subplots()
    plot_confusion(confusion_matrix(half_correct_predictions(classes)), class_names(classes), axes, title="t")
    assert len(axes.texts) == numbered
    assert ("class 1" in [label.get_text() for label in axes.get_yticklabels()]) == bool(numbered)
    assert axes.images[0].get_array().shape == (classes, classes)


def test_markers_at_perfect_accuracy_lie_inside_the_frame():
    figure = plot_reliability_diagrams(PREDICTIONS, PREDICTIONS)
    for axes in figure.axes:
        assert axes.get_xlim()[1] > 1
        assert axes.get_ylim()[1] > 1


def test_a_confusion_matrix_says_that_blank_cells_are_zero():
    for axes in plot_confusion_matrices(PREDICTIONS, PREDICTIONS, ["zero", "one", "two"]).axes:
        assert "blank: 0.0" in axes.get_title()


@pytest.mark.parametrize("count", [0, 1, 4, 6, 7])
def test_a_sheet_of_thumbnails_is_as_wide_as_its_images_or_its_title(count):
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    title = "Validation images: the most confident errors"
    figure = plot_thumbnails(images, ["caption"] * count, title=title)
    add_subtitle(figure, "overfit, seed 0, run 7fa02e")
    figure.draw_without_rendering()
    assert figure.get_figwidth() == pytest.approx(1.5 * min(6, max(count, 4)))
    box = figure._suptitle.get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1
    if count:
        pictures = [image.get_window_extent() for image in figure.axes[0].images[:6]]
        left = min(box.x0 for box in pictures) - figure.bbox.x0
        right = figure.bbox.x1 - max(box.x1 for box in pictures)
        assert left == pytest.approx(right, abs=30), "centred"


def test_a_data_map_counts_the_images_of_each_region():
    probability = torch.full((2000,), 0.9)
    probability[0] = 0.1
    zeros = torch.zeros(2000)
    dynamics = SimpleNamespace(confidence=probability, variability=zeros, targets=zeros.long())
    figure = plot_data_map(dynamics)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "hard: 1 (0.1%)" in labels
    assert "easy: 1,999 (100.0%)" in labels


def test_plots_stop_growing_at_a_hundred_classes():
    def sizes(classes):
        names, predictions = class_names(classes), half_correct_predictions(classes)
        precision = {"1": {"value": 0.5, "low": 0.4, "high": 0.6}}
        metrics = {"by_class": {name: {"precision": precision} for name in names}, "overall": {"curve": [0.5]}}
        search = plot_outcome({"searches": {"all": {"network": {**metrics, "chance": 0.1}}}})["precision_by_class"]
        figures = (
            plot_confusion_matrices(predictions, predictions, names),
            plot_gap_by_class(predictions, predictions, names),
            search,
        )
        return [tuple(figure.get_size_inches()) for figure in figures]

    small, hundred, thousand = map(sizes, (4, 100, 1000))
    assert hundred == thousand
    assert all(few[1] < many[1] for few, many in zip(small, hundred, strict=True))


def test_only_the_hundred_classes_of_lowest_f1_are_shown():
    names, predictions = class_names(1000), half_correct_predictions(1000)
    rows = metrics_by_class(predictions, names)
    axes = Figure().subplots()
    plot_by_class(rows, axes, title="t")
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 100
    assert set(labels) <= {row.name for row in rows if row.f1 == 0}
    assert axes.get_ylabel() == "100 of 1,000 classes"


def test_classes_that_are_never_predicted_have_no_precision():
    names = class_names(120)
    predictions = Predictions(torch.eye(120)[:1].repeat(120, 1), torch.arange(120), torch.arange(120))
    axes = Figure().subplots()
    plot_by_class(metrics_by_class(predictions, names), axes, title="t")
    assert axes.get_legend_handles_labels()[1] == ["recall"]


def test_the_neighbours_of_an_explanation_have_a_heading_and_the_run_a_name():
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    parts = Explanation("shirt", image, image[0] / 1.0, image[0] / 1.0, [(image, "Shirt")] * 4, run="small, seed 0")
    figure = draw(parts, torch.zeros(8, 8, 3, dtype=torch.uint8).numpy())
    assert figure.get_suptitle() == "shirt\nsmall, seed 0"
    assert any("most similar training images" in part.get_suptitle() for part in figure.subfigs)
