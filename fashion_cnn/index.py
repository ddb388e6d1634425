"""Bring products into a catalogue: `python -m fashion_cnn.index run=latest images=photos/`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_class_weight, check_images, check_invert, require
from fashion_cnn.errors import Interrupted, UserError, pluralize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omegaconf import DictConfig

    from fashion_cnn.retrieval.catalogue import Catalogue, TableVersion
    from fashion_cnn.retrieval.products import Products
    from fashion_cnn.runs import Run

# So many pictures that cannot be read are named.
_TOLD = 20


def index(config: DictConfig) -> None:
    """Index what `config` names, and print what was done.

    Raises UserError for a mistake in the options, and at the end where a picture could not be read.
    """
    require("search", "lancedb")
    check_invert(config)
    check_class_weight(config)
    check_images(config)
    from fashion_cnn.inference.network import TrainedNetwork
    from fashion_cnn.models.hardware import keep_freed_memory
    from fashion_cnn.pictures.decoding import silence_pillow
    from fashion_cnn.retrieval.catalogue import Catalogue, as_strings, catalogue_uri
    from fashion_cnn.retrieval.indexing import index_products
    from fashion_cnn.runs import find_finished_run
    from fashion_cnn.terminal import progress_bar

    keep_freed_memory()
    run = find_finished_run(config.run, Path(config.runs_dir))
    catalogue = Catalogue(catalogue_uri(config.catalogue, run))
    if config.remove is not None:
        ids = as_strings(config.remove)
        if not any(ids):
            raise UserError("remove= names no product: give an id, or a list of them.", status=2)
        catalogue.open()  # or say that there is none
        _remove(catalogue, ids)
        return
    network = TrainedNetwork(run, flip_average=config.flip_average, invert=config.invert)
    before = _edition(catalogue)
    try:
        with silence_pillow():
            with progress_bar("reading") as progress:
                products = _products(config, run, catalogue, progress)
            with progress_bar("looking at pictures") as progress:
                done = index_products(
                    products,
                    catalogue,
                    network,
                    class_weight=config.class_weight,
                    prune=config.prune,
                    rebuild=config.rebuild,
                    approximate_above=config.approximate_above,
                    progress=progress,
                )
    except KeyboardInterrupt:
        if _edition(catalogue) == before:
            raise Interrupted("Stopped. The catalogue is as it was; the same command goes on.") from None
        raise Interrupted("Stopped. The products are in the catalogue; the same command does what is left.") from None
    print(
        f"{catalogue.uri}, version {done.version}: {pluralize(done.added, 'product')} added, {done.changed:,} changed, "
        f"{done.removed:,} removed, {done.unchanged:,} as they were."
    )
    if products.note:
        print("These are the images of the run's data set, with titles and prices made up to try the search on.")
    for column in done.emptied:
        print(f"No product has a {column} any more: where that is a mistake, mend the heading of its column.")
    if found := done.approximate:
        print(
            f"Searched by an index, which finds {found.recall:.1%} of the nearest 12 "
            f"(of {found.sample} products; {found.probes} lists are looked at)."
        )
    if done.gone:
        print(
            f"In the catalogue, but not among these: {pluralize(len(done.gone), 'product')}, such as {done.gone[0]}. "
            "prune=true takes them out."
        )
    for one, reason in list(done.unreadable.items())[:_TOLD]:
        print(f"{one}: {reason}", file=sys.stderr)
    if done.unreadable:
        more = f" (the first {_TOLD} are named)" if len(done.unreadable) > _TOLD else ""
        left = "what the catalogue says of these, if anything, stays as it was"
        if config.rebuild:
            left = "these are not in the catalogue, which was made anew"
        raise UserError(
            f"The pictures of {len(done.unreadable)} of {pluralize(len(products.ids), 'product')} could not be read"
            f"{more}: {left}."
        )


def _products(config: DictConfig, run: Run, catalogue: Catalogue, progress: Callable[[int, int], None]) -> Products:
    from fashion_cnn.inference.network import instantiate_data
    from fashion_cnn.retrieval.products import products_from_data_set
    from fashion_cnn.retrieval.tables import products_from_files

    if config.images is not None or config.products is not None:
        known = {} if config.rebuild else catalogue.column_types()
        return products_from_files(config.images, config.products, progress, known)
    return products_from_data_set(instantiate_data(run, config.data.root))


def _edition(catalogue: Catalogue) -> TableVersion | None:
    return catalogue.table_version() if catalogue.exists() else None


def _remove(catalogue: Catalogue, ids: Sequence[str]) -> None:
    with catalogue.transaction():
        removed = catalogue.remove(ids)
    print(f"{catalogue.uri}, version {catalogue.table_version().version}: {pluralize(removed, 'product')} removed.")
    if removed < len(ids):
        raise UserError(f"The catalogue held only {removed} of {pluralize(len(ids), 'id')}.")


def main() -> None:
    run_command("index", index)


if __name__ == "__main__":
    main()
