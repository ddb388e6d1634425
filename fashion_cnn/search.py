"""Search a catalogue by picture, text or product: `python -m fashion_cnn.search run=latest image=shirt.jpg`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import as_strings, check_choice, require
from fashion_cnn.errors import UserError, printable

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from PIL import Image
    from torch import Tensor

    from fashion_cnn.retrieval.searcher import Hit, Query, Searcher
    from fashion_cnn.retrieval.vectors import SearchNetwork

_QUERY_OPTIONS = ("image", "unlike_image", "like", "unlike", "concept", "text")


def search(config: DictConfig) -> None:
    """Print the best hits for a query, or the near duplicates of a catalogue.

    Args:
        config: `conf/search.yaml` with the overrides.

    Raises:
        UserError: for an invalid option, an unreadable picture, or a catalogue of another network.
    """
    require("search", "lancedb")
    _check(config)
    from fashion_cnn.pictures.decoding import silence_pillow
    from fashion_cnn.pictures.photographs import COLOUR_COLUMN
    from fashion_cnn.retrieval.catalogue import find_run_and_catalogue
    from fashion_cnn.retrieval.filters import describe_unmatched
    from fashion_cnn.retrieval.output import as_record, print_hits
    from fashion_cnn.retrieval.searcher import Searcher
    from fashion_cnn.retrieval.snapshot import Snapshot
    from fashion_cnn.retrieval.vectors import load_network
    from fashion_cnn.terminal import json_text

    run, catalogue = find_run_and_catalogue(config.run, config.catalogue, Path(config.runs_dir))
    snapshot = Snapshot(catalogue)
    searcher = Searcher(snapshot, load_network(run, snapshot.metadata))
    if config.duplicates is not None:
        _print_duplicates(searcher, config)
        return
    with silence_pillow():
        query, pictures = _query(config, searcher)
    result = searcher.search(query)
    hits = result.hits
    if not hits:
        for sentence in describe_unmatched(query.conditions, snapshot.attributes):
            print(printable(sentence), file=sys.stderr)
    if colours := result.colours:
        phrases = ", ".join(f"“{phrase}”" for phrase in colours.phrases)
        taken = f"Taken as {COLOUR_COLUMN}={' or '.join(colours.values)}: {phrases}."
        print(printable(f"{taken} For the words: text='{colours.quoted}'"), file=sys.stderr)
    if hits and result.with_all_words == 0:
        print("No product has all the words: these have some of them.", file=sys.stderr)
    if config.sheet:
        _write_sheet(hits, pictures, Path(config.sheet).expanduser())
    if config.format == "json":
        print(json_text([as_record(hit) for hit in hits]))
    else:
        print_hits(hits)
    if config.sheet:
        print(f"Contact sheet: {config.sheet}", file=sys.stderr)


def _check(config: DictConfig) -> None:
    check_choice(config, "format", ("table", "json"))
    if config.top_k < 1:
        raise UserError(f"top_k={config.top_k} is not possible: give 1 or more.", status=2)
    is_number = isinstance(config.duplicates, int | float)
    if config.duplicates is not None and not (is_number and 0 < config.duplicates <= 1):
        raise UserError(f"duplicates={config.duplicates} is not a similarity: give a number in (0, 1].", status=2)
    is_range = isinstance(config.price, Sequence) and not isinstance(config.price, str) and len(config.price) == 2
    if config.price is not None and not is_range:
        raise UserError(f"price={config.price} is not [min,max], such as price=[10,50] or price=[null,50].", status=2)
    if config.box is not None and not config.image:
        raise UserError("box= is a part of a picture: give image=PATH too.", status=2)
    query = [name for name in _QUERY_OPTIONS if config[name]]
    if config.duplicates is None and not query:
        raise UserError(
            "The query is empty: give image=PATH, like=ID or text='some words' (or several), or duplicates=0.999.",
            status=2,
        )
    if config.duplicates is not None and query:
        raise UserError(f"duplicates= compares the whole catalogue: omit {query[0]}=.", status=2)


def _query(config: DictConfig, searcher: Searcher) -> tuple[Query, list[Image.Image]]:
    """Build the query of the options, and return its pictures for the contact sheet."""
    from omegaconf import OmegaConf

    from fashion_cnn.concepts import Concepts
    from fashion_cnn.retrieval.filters import parse_conditions
    from fashion_cnn.retrieval.searcher import Query

    network = searcher.network
    pictures, prepared = _read_pictures(config, "image", network)
    _, unlike_prepared = _read_pictures(config, "unlike_image", network)
    where = OmegaConf.to_container(config.where) if OmegaConf.is_config(config.where) else config.where
    if not isinstance(where, dict | None):
        raise UserError(f"where={where} names no column: write 'where={{colour:red}}'.", status=2)
    filters: dict[str, Any] = dict(where or {})  # type: ignore[arg-type]
    if config.category is not None:
        filters["category"] = as_strings(config.category)
    if config.price is not None:
        filters["price"] = {"min": config.price[0], "max": config.price[1]}
    concepts = Concepts(network.run, network.identity)
    query = Query(
        pictures=tuple(prepared),
        unlike_pictures=tuple(unlike_prepared),
        like=as_strings(config.like),
        unlike=as_strings(config.unlike),
        concepts=tuple(concepts.direction(name) for name in as_strings(config.concept)),
        text=str(config.text or ""),
        conditions=parse_conditions(filters, searcher.snapshot.attributes.schema),
        top_k=config.top_k,
    )
    return query, pictures


def _read_pictures(config: DictConfig, option: str, network: SearchNetwork) -> tuple[list[Image.Image], list[Tensor]]:
    """Read the pictures of an option, and print which parts of them are searched or could be.

    Returns:
        The pictures, cropped to `box=`, and the same prepared for the network.
    """
    from fashion_cnn.pictures import UnreadablePictureError, decode, find_pictures, parse_box

    pictures: list[Image.Image] = []
    prepared: list[Tensor] = []
    box = parse_box(as_strings(config.box)) if option == "image" and config.box is not None else None
    paths = find_pictures(config[option], option=option).paths if config[option] else ()
    if box and len(paths) > 1:
        raise UserError(f"box= is for one picture, image= has {len(paths)}: search them one by one.", status=2)
    for path in paths:
        try:
            picture = decode(path, min_pixels=network.preparation.min_pixels_for(box))
        except UnreadablePictureError as error:
            raise UserError(f"{path}: {error}") from error
        pictures.append(picture.crop(box.pixels(picture.size)) if box else picture)
        prepared.append(network.preparation(picture, box))
        if option == "image" and not box and (items := network.preparation.find_items(picture)):
            boxes = " or ".join(f"box=[{item}]" for item in items)
            parts = f"{len(items)} parts stand out from the background"
            print(printable(f"{path}: {parts}; to search one alone: {boxes}."), file=sys.stderr)
        if network.finds_item(prepared[-1]) is False:
            searched = "all of the box" if box else "the middle square"
            hint = "" if box else "; box= says where it is"
            print(printable(f"{path}: no item stands out, {searched} is searched{hint}."), file=sys.stderr)
    return pictures, prepared


def _write_sheet(hits: Sequence[Hit], pictures: Sequence[Image.Image], path: Path) -> None:
    from fashion_cnn.plots.style import save_figure
    from fashion_cnn.retrieval.output import contact_sheet

    try:
        save_figure(contact_sheet(hits, pictures), path)
    except (OSError, ValueError) as error:
        raise UserError(f"sheet={path} cannot be written ({error}): give a file such as hits.png.") from error


def _print_duplicates(searcher: Searcher, config: DictConfig) -> None:
    from fashion_cnn.retrieval.output import print_duplicates
    from fashion_cnn.retrieval.searcher import near_duplicates
    from fashion_cnn.terminal import json_text, progress_bar

    with progress_bar("pairs") as progress:
        groups = near_duplicates(searcher.snapshot.vectors, config.duplicates, progress)
    products = [[searcher.snapshot.attributes_of(row) for row in group] for group in groups]
    if config.format == "json":
        print(json_text([[product["id"] for product in group] for group in products]))
    else:
        print_duplicates(products, config.duplicates)


def main() -> None:
    """Run the command."""
    run_command("search", search)


if __name__ == "__main__":
    main()
