"""Figures of all kinds: names in them as they are, and files that are whole."""

import os
from types import SimpleNamespace

import pytest
import torch
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.text import Text

from fashion_cnn.inference.explain import Explanation, draw
from fashion_cnn.metrics.classification import metrics_by_class
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.plots.evaluation import plot_by_class
from fashion_cnn.plots.search import plot_precision_by_class
from fashion_cnn.plots.style import plot_thumbnails, save_figure
from fashion_cnn.plots.training import confusion, gap_by_class
from fashion_cnn.retrieval.contact_sheet import contact_sheet
from fashion_cnn.retrieval.products import encode_png

# Read as mathematics the first cannot be drawn; the second is a file's name in another encoding.
NAMES = ["$5_$10", os.fsdecode(b"caf\xe9"), "$x$"]
PREDICTIONS = Predictions(torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 0, 1, 1]), torch.arange(6))


def on_axes(plot, *given):
    figure = Figure()
    plot(*given, figure.subplots(), title="made")
    return figure


def explained():
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    return draw(
        Explanation(NAMES[0], image, image[0] / 1.0, image[0] / 1.0, [(image, name) for name in NAMES]),
        torch.zeros(8, 8, 3, dtype=torch.uint8).numpy(),
    )


def found():
    from PIL import Image

    thumbnail = encode_png(Image.new("L", (8, 8)))
    return contact_sheet(
        [SimpleNamespace(title=n, id=n, category=n, price=1, similarity=1, thumbnail=thumbnail) for n in NAMES]
    )


def searched():
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    by_name = {"by_class": {name: {"precision": {"1": share}} for name in NAMES}}
    return on_axes(plot_precision_by_class, {"network": by_name})


@pytest.mark.parametrize(
    "drawn",
    [
        lambda: confusion(PREDICTIONS, PREDICTIONS, NAMES),
        lambda: gap_by_class(PREDICTIONS, PREDICTIONS, NAMES),
        lambda: plot_thumbnails(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), NAMES, title="made"),
        lambda: on_axes(plot_by_class, metrics_by_class(PREDICTIONS, NAMES)),
        searched,
        explained,
        found,
    ],
    ids=["confusion", "gap by class", "thumbnails", "by class", "search", "explanation", "contact sheet"],
)
def test_a_name_is_drawn_as_it_is_whatever_is_in_it(tmp_path, drawn):
    figure = drawn()
    save_figure(figure, tmp_path / "figure.png")
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert sum("5_" in text for text in texts) >= 1
    assert not any(map(is_math_text, texts))


def test_a_figure_that_is_not_written_to_its_end_leaves_the_one_of_before(tmp_path, monkeypatch):
    path = tmp_path / f"{'long ' * 50}.png"
    save_figure(Figure(), path)
    before = path.read_bytes()

    def stopped(figure, file, **_):
        (file.open("wb") if hasattr(file, "open") else file).write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_figure(Figure(), path)
    assert path.read_bytes() == before
