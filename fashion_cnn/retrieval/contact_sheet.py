"""What was found, as one picture: a thumbnail a product, with what it is called underneath."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fashion_cnn.plots.style import escape_label
from fashion_cnn.retrieval.searcher import Hit

_COLUMNS = 4
_GROUND = "#d8d8d8"


def contact_sheet(hits: Sequence[Hit], asked: Sequence[Image.Image] = ()) -> Figure:
    """The pictures that were asked for, if any, in the first row, then the hits, the best first, with their scores."""
    asked_rows, hit_rows = (-(-len(pictures) // _COLUMNS) for pictures in (asked, hits))
    rows = max(asked_rows + hit_rows, 1)
    figure = Figure(figsize=(2.2 * _COLUMNS, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for place, picture in enumerate(asked):
        _show(grid[place // _COLUMNS][place % _COLUMNS], picture, "asked for")
    for place, hit in enumerate(hits):
        price = "" if hit.price is None else f"{hit.price:.2f}"
        score = "" if hit.similarity is None else f"{hit.similarity:.3f}"
        said = "\n".join(
            [_short(hit.title), _short(hit.id), "   ".join(part for part in (hit.category, price, score) if part)]
        )
        axes = grid[asked_rows + place // _COLUMNS][place % _COLUMNS]
        _show(axes, Image.open(io.BytesIO(hit.thumbnail)), said)
    return figure


def _show(axes: Axes, picture: Image.Image, said: str) -> None:
    # An item on transparent ground may be as white as the sheet.
    ground = Image.new("RGBA", picture.size, _GROUND)
    axes.imshow(Image.alpha_composite(ground, picture.convert("RGBA")), interpolation="nearest")
    axes.set_title(escape_label(said), fontsize=7, y=-0.02, va="top")


def _short(text: str) -> str:
    return text if len(text) <= 32 else f"{text[:31]}…"
