"""Bring products into a catalogue: `python -m fashion_cnn.index run=latest images=photos/`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.command_line import Interrupted, run_command
from fashion_cnn.errors import UserError
from fashion_cnn.extras import require
from fashion_cnn.options import check_class_weight, check_images, check_invert

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omegaconf import DictConfig

    from fashion_cnn.retrieval.catalogue import Catalogue
    from fashion_cnn.retrieval.products import Products
    from fashion_cnn.runs import Run


def index(config: DictConfig) -> None:
    """Index what `config` names, and print what was done.

    Raises UserError for a mistake in the options, and at the end where a picture could not be read.
    """
    require("search", "lancedb")
    check_invert(config)
    check_class_weight(config)
    check_images(config)
    from fashion_cnn.pictures.decoding import quiet_pillow
    from fashion_cnn.prediction import TrainedNetwork
    from fashion_cnn.progress_bar import progress_bar
    from fashion_cnn.retrieval.catalogue import Catalogue
    from fashion_cnn.retrieval.indexing import index as index_products
    from fashion_cnn.retrieval.named import catalogue_at, listed
    from fashion_cnn.runs import find_measured
    from fashion_cnn.training.memory import keep_freed_memory

    keep_freed_memory()
    run = find_measured(config.run, Path(config.runs_dir))
    catalogue = Catalogue(catalogue_at(config.catalogue, run))
    if config.remove:
        _remove(catalogue, listed(config.remove))
        return
    network = TrainedNetwork(run, flip_average=config.flip_average, invert=config.invert)
    try:
        with quiet_pillow():
            with progress_bar("reading") as progress:
                products = _products(config, run, progress)
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
        raise Interrupted("Stopped. The catalogue is as it was; the same command goes on.") from None
    print(
        f"{catalogue.uri}, version {done.version}: {done.added:,} products added, {done.changed:,} changed, "
        f"{done.removed:,} removed, {done.unchanged:,} as they were."
    )
    if found := done.approximate:
        print(
            f"Searched by an index, which finds {found.recall:.1%} of the nearest 12 "
            f"(of {found.sample} products; {found.probes} lists are looked at)."
        )
    if done.gone:
        print(
            f"{len(done.gone):,} products of the catalogue are not among these (such as {done.gone[0]}): "
            "prune=true takes them out."
        )
    for one, reason in done.unreadable.items():
        print(f"{one}: {reason}", file=sys.stderr)
    if done.unreadable:
        raise UserError(f"The pictures of {len(done.unreadable)} of {len(products.ids)} products could not be read.")


def _products(config: DictConfig, run: Run, progress: Callable[[int, int], None]) -> Products:
    from fashion_cnn.prediction import data_set_of
    from fashion_cnn.retrieval.data_set_products import products_of_data_set
    from fashion_cnn.retrieval.file_products import products_of_files

    if config.images is not None or config.products is not None:
        return products_of_files(config.images, config.products, progress)
    return products_of_data_set(data_set_of(run, config.data.root))


def _remove(catalogue: Catalogue, ids: Sequence[str]) -> None:
    removed = catalogue.remove(ids)
    print(f"{catalogue.uri}, version {catalogue.newest()}: {removed:,} products removed.")
    if removed < len(ids):
        raise UserError(f"{len(ids) - removed} of {len(ids)} ids are not in the catalogue.")


def main() -> None:
    run_command("index", index)


if __name__ == "__main__":
    main()
