"""Find what looks like a picture in a catalogue: `python -m fashion_cnn.search run=latest image=shirt.jpg`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_choice, require
from fashion_cnn.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from PIL import Image
    from torch import Tensor

    from fashion_cnn.inference.network import TrainedNetwork
    from fashion_cnn.retrieval.searcher import Query, Searcher, SearchHits

_ASKED = ("image", "unlike_image", "like", "unlike", "concept", "text")


def search(config: DictConfig) -> None:
    """Print what fits `config` best, or which products are near duplicates.

    Raises UserError for a mistake in the options, a picture that cannot be read, and a catalogue of another network.
    """
    require("search", "lancedb")
    _check(config)
    from fashion_cnn.pictures.decoding import silence_pillow
    from fashion_cnn.retrieval.catalogue import find_run_and_catalogue
    from fashion_cnn.retrieval.filters import unmet
    from fashion_cnn.retrieval.searcher import Searcher
    from fashion_cnn.retrieval.snapshot import Snapshot
    from fashion_cnn.retrieval.vectors import load_network

    run, catalogue = find_run_and_catalogue(config.run, config.catalogue, Path(config.runs_dir))
    snapshot = Snapshot(catalogue)
    searcher = Searcher(snapshot, load_network(run, snapshot.metadata))
    if config.duplicates is not None:
        _tell_duplicates(searcher, config)
        return
    with silence_pillow():
        query, asked = _query(config, searcher)
    found = searcher.search(query)
    if not found.hits:
        for sentence in unmet(query.conditions, snapshot.attributes):
            print(sentence, file=sys.stderr)
    if config.sheet:
        _draw(found, asked, Path(config.sheet).expanduser())
    _tell(found, config.format)
    if config.sheet:
        print(f"Contact sheet: {config.sheet}", file=sys.stderr)


def _check(config: DictConfig) -> None:
    check_choice(config, "format", ("table", "json"))
    if config.top_k < 1:
        raise UserError(f"top_k={config.top_k} is not possible: give 1 or more.", status=2)
    if config.duplicates is not None and not 0 < config.duplicates <= 1:
        raise UserError(f"duplicates={config.duplicates} is no similarity: give one above 0, up to 1.", status=2)
    if config.price is not None and (not isinstance(config.price, Sequence) or len(config.price) != 2):
        raise UserError("price= is [least,most], such as price=[10,50] or price=[null,50].", status=2)
    asked = [name for name in _ASKED if config[name]]
    if config.duplicates is None and not asked:
        raise UserError(
            "Nothing is asked for: say image=PATH, like=ID or text='some words' (or several), or duplicates=0.999.",
            status=2,
        )
    if config.duplicates is not None and asked:
        raise UserError(f"duplicates= looks at the whole catalogue: leave out {asked[0]}=.", status=2)


def _query(config: DictConfig, searcher: Searcher) -> tuple[Query, list[Image.Image]]:
    """What `config` asks for, and the pictures that it names."""
    from omegaconf import OmegaConf

    from fashion_cnn.pictures import UnreadablePictureError, decode, find_pictures
    from fashion_cnn.retrieval.catalogue import as_strings
    from fashion_cnn.retrieval.filters import parse_conditions
    from fashion_cnn.retrieval.searcher import Query

    preparation = searcher.network.preparation
    shown: dict[str, list[Image.Image]] = {"image": [], "unlike_image": []}
    prepared: dict[str, list[Tensor]] = {"image": [], "unlike_image": []}
    for name in shown:
        for path in find_pictures(config[name], option=name).paths if config[name] else ():
            try:
                picture = decode(path, min_pixels=preparation.min_pixels)
            except UnreadablePictureError as error:
                raise UserError(f"{path}: {error}") from error
            shown[name].append(picture)
            prepared[name].append(preparation(picture))
    where = OmegaConf.to_container(config.where) if OmegaConf.is_config(config.where) else config.where
    if not isinstance(where, dict | None):
        raise UserError(f"where={where} names no column: say it as 'where={{colour:red}}'.", status=2)
    described: dict[str, Any] = dict(where or {})  # type: ignore[arg-type]
    if config.category is not None:
        described["category"] = as_strings(config.category)
    if config.price is not None:
        described["price"] = {"min": config.price[0], "max": config.price[1]}
    query = Query(
        pictures=tuple(prepared["image"]),
        unlike_pictures=tuple(prepared["unlike_image"]),
        like=as_strings(config.like),
        unlike=as_strings(config.unlike),
        concepts=tuple(_directions(searcher.network, as_strings(config.concept))),
        text=str(config.text or ""),
        conditions=parse_conditions(described, searcher.snapshot.attributes.schema),
        top_k=config.top_k,
    )
    return query, shown["image"]


def _directions(network: TrainedNetwork, names: Sequence[str]) -> list[Tensor]:
    """Where the concepts of these names lie, which the network was taught."""
    from fashion_cnn.concepts import Concepts

    concepts = Concepts(network.run, network.identity)
    return [concepts.direction(name) for name in names]


def _tell(found: SearchHits, form: str) -> None:
    import json

    from fashion_cnn.retrieval.output import as_record, print_hits

    if form == "json":
        print(json.dumps([as_record(hit) for hit in found.hits], ensure_ascii=False, indent=1, default=str))
    else:
        print_hits(found)


def _draw(found: SearchHits, asked: Sequence[Image.Image], path: Path) -> None:
    from fashion_cnn.plots.style import save_figure
    from fashion_cnn.retrieval.contact_sheet import contact_sheet

    try:
        save_figure(contact_sheet(found.hits, asked), path)
    except (OSError, ValueError) as error:
        raise UserError(f"sheet={path} cannot be written ({error}): name a file such as found.png.") from error


def _tell_duplicates(searcher: Searcher, config: DictConfig) -> None:
    import json

    from fashion_cnn.retrieval.output import print_duplicates
    from fashion_cnn.retrieval.searcher import near_duplicates
    from fashion_cnn.terminal import progress_bar

    with progress_bar("pairs") as progress:
        groups = near_duplicates(searcher.snapshot.vectors, config.duplicates, progress)
    products = [[searcher.snapshot.attributes_of(row) for row in group] for group in groups]
    if config.format == "json":
        print(json.dumps([[one["id"] for one in group] for group in products], ensure_ascii=False, indent=1))
    else:
        print_duplicates(products, config.duplicates)


def main() -> None:
    run_command("search", search)


if __name__ == "__main__":
    main()
