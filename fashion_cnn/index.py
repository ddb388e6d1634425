"""Index products into a catalogue: `python -m fashion_cnn.index run=latest images=photos/`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import as_strings, check_choice, check_class_weight, check_images, check_invert, require
from fashion_cnn.errors import Interrupted, OmissionsError, UserError, pluralize, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omegaconf import DictConfig

    from fashion_cnn.inference.network import EmbeddingNetwork
    from fashion_cnn.pictures.photographs import PretrainedSettings
    from fashion_cnn.retrieval.catalogue import Catalogue, TableVersion
    from fashion_cnn.retrieval.indexing import IndexingResult
    from fashion_cnn.retrieval.products import Products
    from fashion_cnn.runs import Run

# Maximum number of unusable rows, and of unreadable pictures, that are listed.
_LISTED_ERRORS = 20


def index(config: DictConfig) -> None:
    """Index products, or remove some, and print a summary.

    Args:
        config: `conf/index.yaml` with the overrides.

    Raises:
        UserError: for an invalid option.
        OmissionsError: after indexing, if a row or picture could not be used.
        Interrupted: after Ctrl-C.
    """
    require("search", "lancedb")
    check_invert(config)
    check_class_weight(config)
    check_choice(config, "embedding", ("run", "pretrained"))
    check_images(config)
    from fashion_cnn.models.hardware import keep_freed_memory
    from fashion_cnn.pictures.decoding import silence_pillow
    from fashion_cnn.retrieval.indexing import index_products
    from fashion_cnn.terminal import progress_bar

    keep_freed_memory()
    pretrained = _pretrained_settings(config)
    run, catalogue = _run_and_catalogue(config, pretrained)
    if config.remove is not None:
        _remove(catalogue, as_strings(config.remove))
        return
    before = _version(catalogue)
    try:
        with silence_pillow():
            with progress_bar("reading") as progress:
                products = _products(config, run, catalogue, progress)
            # After the table: a mistake in it is reported before seconds of loading.
            network = _network(config, run, pretrained)
            with progress_bar("embedding") as progress:
                result = index_products(
                    products,
                    catalogue,
                    network,
                    class_weight=0.0 if pretrained else config.class_weight,
                    text_columns=as_strings(config.text_columns),
                    prune=config.prune,
                    rebuild=config.rebuild,
                    approximate_above=config.approximate_above,
                    progress=progress,
                )
    except KeyboardInterrupt:
        if _version(catalogue) == before:
            raise Interrupted("Stopped. The catalogue is unchanged: run the command again to resume.") from None
        raise Interrupted("Stopped. The products are in the catalogue: run the command again to finish.") from None
    _print_result(result, catalogue, products, config.products)
    if omissions := _omissions(result, products, rebuild=config.rebuild):
        raise OmissionsError(omissions)


def _omissions(result: IndexingResult, products: Products, *, rebuild: bool) -> str:
    """Say how many products were left out and what became of them; empty without any."""
    rows, pictures = len(products.omitted), len(result.unreadable)
    parts = []
    if rows:
        parts.append(f"{rows:,} of {pluralize(len(products.ids) + rows, 'row')} could not be used")
    if pictures:
        parts.append(f"the pictures of {pictures:,} of {pluralize(len(products.ids), 'product')} could not be read")
    if not parts:
        return ""
    more = f" (the first {_LISTED_ERRORS} are listed)" if max(rows, pictures) > _LISTED_ERRORS else ""
    consequence = "their entries in the catalogue, if any, are unchanged"
    if rebuild:
        consequence = "they are missing in the rebuilt catalogue"
    text = f"{', and '.join(parts)}{more}: {consequence}."
    return text[0].upper() + text[1:]


def _pretrained_settings(config: DictConfig) -> PretrainedSettings | None:
    """Return the settings of `embedding=pretrained`; None for the network of a run."""
    if config.embedding == "run":
        return None
    from fashion_cnn.pictures.photographs import pretrained_settings

    if config.catalogue is None:
        raise UserError("embedding=pretrained belongs to no run: add catalogue=DIR, such as catalogue=shop/.", status=2)
    if config.images is None and config.products is None and config.remove is None:
        raise UserError("embedding=pretrained has no data set: give images=photos/ or products=shop.csv.", status=2)
    require("photos", "timm")
    if config.run != "latest":
        raise UserError(f"embedding=pretrained takes no run: omit run={config.run} or embedding=.", status=2)
    if config.invert == "always":
        raise UserError("invert=always is not possible with embedding=pretrained, which takes photographs.", status=2)
    return pretrained_settings(**config.photographs)


def _run_and_catalogue(config: DictConfig, pretrained: PretrainedSettings | None) -> tuple[Run, Catalogue]:
    """Find the run, or for a pretrained network the folder of the catalogue in its place, and the catalogue."""
    from fashion_cnn.retrieval.catalogue import Catalogue, catalogue_uri
    from fashion_cnn.runs import Run, check_links, find_finished_run

    uri = None if config.catalogue is None else catalogue_uri(config.catalogue)
    if pretrained and uri:
        return Run(Path(uri)), Catalogue(uri)
    run = find_finished_run(config.run, Path(config.runs_dir))
    if uri is None:
        check_links(run.path, run.catalogue.name)
    return run, Catalogue(uri or str(run.catalogue))


def _network(config: DictConfig, run: Run, pretrained: PretrainedSettings | None) -> EmbeddingNetwork:
    if pretrained:
        from fashion_cnn.inference.pretrained import PretrainedNetwork

        return PretrainedNetwork(run, pretrained, flip_average=config.flip_average)
    from fashion_cnn.inference.network import TrainedNetwork

    return TrainedNetwork(run, flip_average=config.flip_average, needs_embeddings=True, invert=config.invert)


def _products(config: DictConfig, run: Run, catalogue: Catalogue, progress: Callable[[int, int], None]) -> Products:
    from fashion_cnn.inference.network import instantiate_data
    from fashion_cnn.retrieval.products import products_from_data_set
    from fashion_cnn.retrieval.tables import products_from_files

    if config.images is not None or config.products is not None:
        known_types = {} if config.rebuild else catalogue.column_types()
        return products_from_files(config.images, config.products, progress, known_types)
    return products_from_data_set(instantiate_data(run, config.data.root))


def _version(catalogue: Catalogue) -> TableVersion | None:
    from fashion_cnn.retrieval.catalogue import DamagedCatalogueError

    try:
        return catalogue.table_version() if catalogue.exists() else None
    except DamagedCatalogueError:  # rebuild=true replaces it
        return None


def _print_result(result: IndexingResult, catalogue: Catalogue, products: Products, table: str | None) -> None:
    print(
        f"{catalogue.uri}, version {result.version}: {pluralize(result.added, 'product')} added, "
        f"{result.changed:,} changed, {result.removed:,} removed, {result.unchanged:,} unchanged."
    )
    if products.note:
        print("The products are images of the run's data set, with made-up titles and prices.")
    for column in result.emptied:
        print(f"No product has a {printable(column)} any more: check the heading of its column.")
    if vector_index := result.vector_index:
        print(
            f"Search is approximate: it finds {vector_index.recall:.1%} of the exact nearest 12 "
            f"(measured on {vector_index.sample} products, {vector_index.probes} lists probed)."
        )
    if result.missing:
        print(
            f"In the catalogue, but not among these: {pluralize(len(result.missing), 'product')}, such as "
            f"{printable(result.missing[0])}. Remove them with prune=true."
        )
    for row in products.omitted[:_LISTED_ERRORS]:
        print(printable(f"{table}, {row}"), file=sys.stderr)
    for product_id, reason in list(result.unreadable.items())[:_LISTED_ERRORS]:
        print(printable(f"{product_id}: {reason}"), file=sys.stderr)


def _remove(catalogue: Catalogue, ids: Sequence[str]) -> None:
    if not any(ids):
        raise UserError("remove= names no product: give an id, or a list of ids.", status=2)
    catalogue.open()  # fails without a catalogue, before the transaction would create its folder
    with catalogue.transaction():
        removed = catalogue.remove(ids)
    print(f"{catalogue.uri}, version {catalogue.table_version().version}: {pluralize(removed, 'product')} removed.")
    if removed < len(ids):
        raise UserError(f"The catalogue held only {removed} of {pluralize(len(ids), 'id')}.")


def main() -> None:
    """Run the command."""
    run_command("index", index)


if __name__ == "__main__":
    main()
