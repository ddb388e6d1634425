"""What was found, on standard output."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fashion_cnn.retrieval.searcher import Hit, SearchHits
from fashion_cnn.terminal import wide_console

# Groups of duplicates that are listed on a screen.
_MOST_GROUPS = 50


def as_record(hit: Hit) -> dict[str, Any]:
    """A hit as JSON has it, without its picture."""
    record = {"id": hit.id, "title": hit.title, "category": hit.category, "price": hit.price}
    return record | {"similarity": hit.similarity, **hit.attributes}


def print_hits(found: SearchHits) -> None:
    """A row a product, the best first."""
    if not found.hits:
        print("No product of the catalogue fits.")
        return
    own = [name for name in found.hits[0].attributes if name not in ("seen_as", "confidence")]
    table = Table()
    for heading in ("", "id", "title", "category", "price", "similarity", *own):
        table.add_column(
            heading, justify="right" if heading in ("", "price", "similarity") else "left", overflow="fold"
        )
    for place, hit in enumerate(found.hits, start=1):
        figures = (
            "" if value is None else f"{value:.{digits}f}" for value, digits in ((hit.price, 2), (hit.similarity, 3))
        )
        others = ("" if hit.attributes[name] is None else str(hit.attributes[name]) for name in own)
        table.add_row(*map(Text, (str(place), hit.id, hit.title, hit.category, *figures, *others)))
    wide_console().print(table)


def print_duplicates(groups: Sequence[Sequence[dict[str, Any]]], at_least: float) -> None:
    """A row a group of products that are so alike, the largest group first."""
    products = sum(map(len, groups))
    if groups:
        table = Table()
        for heading in ("products", "ids", "titles"):
            table.add_column(heading, justify="right" if heading == "products" else "left", overflow="fold")
        for group in groups[:_MOST_GROUPS]:
            ids = ", ".join(one["id"] for one in group[:10]) + (", …" if len(group) > 10 else "")
            titles = ", ".join(dict.fromkeys(one["title"] for one in group[:10]))
            table.add_row(str(len(group)), Text(ids), Text(titles))
        wide_console().print(table)
    more = f"; the {_MOST_GROUPS} largest are shown, format=json gives all" if len(groups) > _MOST_GROUPS else ""
    print(f"{products:,} products in {len(groups):,} groups are alike by {at_least} and more{more}.")
