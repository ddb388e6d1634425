"""Search results as JSON records, as tables in the terminal and as a contact sheet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from fashion_cnn.retrieval.products import PRODUCT_COLUMNS, decode_thumbnail
from fashion_cnn.retrieval.searcher import Hit
from fashion_cnn.terminal import print_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Maximum number of groups of duplicates in the table.
_MAX_GROUPS = 50
# Columns and background of a contact sheet.
_SHEET_COLUMNS = 4
_SHEET_BACKGROUND = "#d8d8d8"


def as_record(hit: Hit) -> dict[str, Any]:
    """Convert a hit to a JSON record, without its thumbnail."""
    return {name: getattr(hit, name) for name in (*PRODUCT_COLUMNS, "similarity")} | hit.attributes


def print_hits(hits: Sequence[Hit]) -> None:
    """Print one row per hit, the best first."""
    if not hits:
        print("No product of the catalogue matches.")
        return
    custom = [name for name in hits[0].attributes if name not in ("seen_as", "confidence")]
    rows = [
        [
            *(str(place), hit.id, hit.title, hit.category, _number(hit.price, 2), _number(hit.similarity, 3)),
            *("" if hit.attributes[name] is None else str(hit.attributes[name]) for name in custom),
        ]
        for place, hit in enumerate(hits, start=1)
    ]
    headings = ("", "id", "title", "category", "price", "similarity", *custom)
    print_table(headings, rows, right=("", "price", "similarity"), wide=True)


def print_duplicates(groups: Sequence[Sequence[dict[str, Any]]], threshold: float) -> None:
    """Print one row per group of near duplicates, the largest group first.

    Args:
        groups: attributes of the products of each group.
        threshold: minimum cosine of a link, for the summary below the table.
    """
    rows = []
    for group in groups[:_MAX_GROUPS]:
        ids = ", ".join(product["id"] for product in group[:10]) + (", …" if len(group) > 10 else "")
        titles = ", ".join(dict.fromkeys(product["title"] for product in group[:10]))
        rows.append((str(len(group)), ids, titles))
    if rows:
        print_table(("products", "ids", "titles"), rows, right=("products",), wide=True)
    more = f"; the {_MAX_GROUPS} largest are shown, format=json lists all" if len(groups) > _MAX_GROUPS else ""
    products = sum(map(len, groups))
    print(f"{products:,} products in {len(groups):,} groups have a similarity of {threshold} or more{more}.")


def contact_sheet(hits: Sequence[Hit], queries: Sequence[Image.Image] = ()) -> "Figure":
    """Draw the query pictures in the first rows, then the hits with title, id, category, price and similarity.

    A thumbnail that cannot be decoded is drawn as a grey square.
    """
    from matplotlib.figure import Figure

    query_rows, hit_rows = (-(-len(pictures) // _SHEET_COLUMNS) for pictures in (queries, hits))
    rows = max(query_rows + hit_rows, 1)
    figure = Figure(figsize=(2.2 * _SHEET_COLUMNS, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, _SHEET_COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, picture in zip(grid.flat, queries, strict=False):
        _draw_picture(axes, picture, "query")
    for axes, hit in zip(grid[query_rows:].flat, hits, strict=False):
        details = "   ".join(filter(None, (hit.category, _number(hit.price, 2), _number(hit.similarity, 3))))
        caption = "\n".join([_shorten(hit.title), _shorten(hit.id), details])
        _draw_picture(axes, decode_thumbnail(hit.thumbnail) or Image.new("L", (1, 1), "grey"), caption)
    return figure


def _draw_picture(axes: "Axes", picture: Image.Image, caption: str) -> None:
    from fashion_cnn.plots.style import escape_label

    # A transparent picture may be as white as the sheet.
    background = Image.new("RGBA", picture.size, _SHEET_BACKGROUND)
    axes.imshow(Image.alpha_composite(background, picture.convert("RGBA")), interpolation="nearest")
    axes.set_title(escape_label(caption), fontsize=7, y=-0.02, va="top")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _shorten(text: str) -> str:
    return text if len(text) <= 32 else f"{text[:31]}…"
