"""Indexing: embed new and changed products, many at once or a single one, and store them in a catalogue."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fashion_cnn.errors import UserError, did_you_mean
from fashion_cnn.inference.prediction import softmax
from fashion_cnn.pictures import UnreadablePictureError
from fashion_cnn.retrieval.approximate import VectorIndex, update_vector_index
from fashion_cnn.retrieval.catalogue import (
    Catalogue,
    CatalogueMetadata,
    DamagedCatalogueError,
    metadata_of,
    storage_errors_reported,
)
from fashion_cnn.retrieval.products import (
    PRODUCT_COLUMNS,
    TEXT_COLUMNS,
    Picture,
    Products,
    add_joined_text,
    custom_columns,
    describe_type,
)
from fashion_cnn.retrieval.tables import content_key, parse_value
from fashion_cnn.retrieval.vectors import SearchNetwork, embed, search_vectors, vector_dimensions

# Maximum number of products per write to the staging table; an interruption loses at most one such batch.
_STAGING_BATCH = 2000
# Maximum size of the prepared pictures of a batch in bytes.
_STAGING_BYTES = 50_000_000


@dataclass(frozen=True)
class IndexingResult:
    """Outcome of an indexing.

    Attributes:
        added: number of new products.
        changed: number of changed products.
        unchanged: number of unchanged products.
        removed: number of removed products.
        missing: ids in the catalogue that the indexed products lack and that were not removed.
        unreadable: reason by id for products whose picture could not be read.
        emptied: columns that held values before and hold none now.
        version: version of the catalogue.
        vector_index: index for approximate search; None for exact search.
    """

    added: int
    changed: int
    unchanged: int
    removed: int
    missing: tuple[str, ...]
    unreadable: dict[str, str]
    emptied: tuple[str, ...]
    version: int
    vector_index: VectorIndex | None


def index_products(
    products: Products,
    catalogue: Catalogue,
    network: SearchNetwork,
    *,
    class_weight: float = 0.0,
    text_columns: Sequence[str] = TEXT_COLUMNS,
    prune: bool = False,
    rebuild: bool = False,
    approximate_above: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> IndexingResult:
    """Update a catalogue to the given products, in one transaction. After an interruption, the same call resumes.

    Args:
        products: all products of the shop.
        catalogue: the catalogue to update.
        network: embeds the pictures.
        class_weight: see `search_vectors`.
        text_columns: columns of the products that words are searched in, texts or numbers.
        prune: remove products that `products` lacks.
        rebuild: replace the whole catalogue.
        approximate_above: number of products above which search is approximate; None or 0 for never.
        progress: called with the number of pictures that are done and in all.

    Raises:
        UserError: if a text column does not exist or has another type, no picture can be read, the catalogue holds
            vectors of another network, or another process is indexing into it.
    """
    # The confidence of later products is calibrated as that of the earlier ones.
    is_new = rebuild or not catalogue.exists()
    temperature = _fit_temperature(network) if is_new else catalogue.metadata().temperature
    metadata = CatalogueMetadata(
        network=network.identity,
        run=str(network.run.path.absolute()),
        dimensions=vector_dimensions(network, class_weight),
        class_weight=class_weight,
        flip_average=network.flip_average,
        invert=network.preparation.invert,
        note=products.note,
        temperature=temperature,
        pretrained=network.pretrained,
        text_columns=tuple(text_columns),
    )
    products = _with_measured_columns(products, network)
    _check_text_columns(products.table.schema, text_columns)
    with catalogue.transaction():
        catalogue.begin(metadata, custom_columns(products.table.schema), rebuild=rebuild)
        ids = products.ids
        stored_keys = {} if rebuild else catalogue.content_keys()
        columns_before = _columns_before(catalogue, rebuild=rebuild)
        outdated = [row for row, key in enumerate(products.content_keys) if stored_keys.get(ids[row]) != key]
        unreadable = _stage(catalogue, products, network, metadata, outdated, progress)
        ready = [ids[row] for row in outdated if ids[row] not in unreadable]
        if unreadable and not ready and not stored_keys:
            product_id, reason = next(iter(unreadable.items()))
            raise UserError(
                f"None of {len(ids)} pictures could be read, such as {product_id}: {reason}. Nothing was indexed."
            )
        catalogue.commit(ready, rebuild=rebuild)
        # A product whose row cannot be used is still a product of the shop.
        missing = sorted(stored_keys.keys() - set(ids) - {row.id for row in products.omitted})
        removed = catalogue.remove(missing) if prune and missing else 0
        with storage_errors_reported(catalogue.uri):
            vector_index = update_vector_index(catalogue.open_latest(), approximate_above)
    changed = sum(product_id in stored_keys for product_id in ready)
    return IndexingResult(
        added=len(ready) - changed,
        changed=changed,
        unchanged=len(ids) - len(outdated),
        removed=removed,
        missing=() if prune else tuple(missing),
        unreadable=unreadable,
        emptied=tuple(sorted(columns_before - catalogue.non_empty_columns())) if columns_before else (),
        version=catalogue.table_version().version,
        vector_index=vector_index,
    )


def _with_measured_columns(products: Products, network: SearchNetwork) -> Products:
    """Add empty columns for the values that the network measures on pictures."""
    table = products.table
    for name in set(network.measured_columns) - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), pa.string()))
    return replace(products, table=table)


def _check_text_columns(schema: pa.Schema, names: Sequence[str]) -> None:
    """Raise UserError for a column that does not exist, or whose values are neither texts nor numbers."""
    if not names:
        raise UserError("text_columns names no column: give one or more, such as text_columns=[title].", status=2)
    for name in names:
        if name not in schema.names:
            known = ", ".join(schema.names)
            raise UserError(
                f"text_columns: the products have no column {name}. Their columns: {known}."
                f"{did_you_mean(name, schema.names)}",
                status=2,
            )
        kind = schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise UserError(f"text_columns: column {name} holds {describe_type(kind)}, not text or numbers.", status=2)


def _stage(
    catalogue: Catalogue,
    products: Products,
    network: SearchNetwork,
    metadata: CatalogueMetadata,
    outdated: Sequence[int],
    progress: Callable[[int, int], None],
) -> dict[str, str]:
    """Embed the pictures of the outdated rows that an interrupted call has not staged, and stage them.

    Returns:
        The reason by id for products whose picture could not be read.
    """
    ids = products.ids
    unreadable: dict[str, str] = {}
    staged_keys = catalogue.content_keys(staged=True)
    pending = [row for row in outdated if staged_keys.get(ids[row]) != products.content_keys[row]]
    done = len(outdated) - len(pending)
    batch_size = max(1, min(_STAGING_BATCH, _STAGING_BYTES // math.prod(network.preparation.image_shape)))
    with closing(products.read_pictures(pending, network.preparation)) as reader:
        while batch := list(islice(reader, batch_size)):
            unreadable |= {ids[row]: str(error) for row, error in batch if isinstance(error, UnreadablePictureError)}
            if pictures := [(row, picture) for row, picture in batch if isinstance(picture, Picture)]:
                catalogue.stage(_embed(products, network, pictures, metadata))
            done += len(batch)
            progress(done, len(outdated))
    return unreadable


class InvalidProductError(UserError):
    """A product cannot be stored as it is described."""


def put_product(
    catalogue: Catalogue,
    network: SearchNetwork,
    product_id: str,
    values: Mapping[str, Any],
    picture: Picture | None = None,
    digest: str = "",
) -> bool:
    """Add a product to a catalogue or change it, in one transaction.

    Columns that are not given keep their values, except those that are measured on a new picture. A category that is
    empty, or was predicted, is predicted.

    Args:
        catalogue: the catalogue.
        network: the network that made its vectors.
        product_id: id of the product.
        values: values of some columns, as `parse_value` takes them.
        picture: its picture; None keeps that of the product.
        digest: hash of the file of the picture.

    Returns:
        True if the product is new.

    Raises:
        InvalidProductError: if a column does not exist or a value does not fit it, or a new product has no picture.
        UserError: if the catalogue was made by another network, or cannot be changed.
    """
    with catalogue.transaction():
        table = catalogue.open_latest()
        metadata = metadata_of(table)
        made_with = (metadata.network, metadata.flip_average, metadata.invert)
        if made_with != (network.identity, network.flip_average, network.preparation.invert):
            raise UserError(f"{catalogue.uri} was indexed with another network or other settings: try again later.")
        stored = catalogue.row(product_id)
        if stored is None and picture is None:
            raise InvalidProductError(f"The catalogue has no product {product_id:.100}: a new one needs a picture.")
        columns = [table.schema.field(name) for name in PRODUCT_COLUMNS] + custom_columns(table.schema)
        given = _parse_values(values, columns)
        row = {column.name: stored[column.name] if stored else None for column in columns} | {"id": product_id}
        measured = dict.fromkeys(network.measured_columns if picture else ())
        if stored and stored["category"] == stored["seen_as"]:
            measured["category"] = None
        row |= {name: None for name in measured if name in row} | given
        row["title"] = row["title"] or product_id
        schema = pa.schema(columns)
        key = content_key(row, digest or (stored["key"] if stored else ""))
        if picture:
            product = Products(pa.Table.from_pylist([row], schema), (key,), lambda rows, preparation: (_ for _ in ()))
            catalogue.put(_embed(product, network, [(0, picture)], metadata))
        else:
            assert stored
            row["category"] = row["category"] or stored["seen_as"]
            changed = pa.Table.from_pylist([stored | row | {"key": key}], table.schema)
            catalogue.put(add_joined_text(changed, metadata.text_columns))
        return stored is None


def _parse_values(values: Mapping[str, Any], columns: Sequence[pa.Field]) -> dict[str, Any]:
    """Convert values by column name to those of a catalogue. Raises InvalidProductError, see `put_product`."""
    fields = {column.name: column for column in columns if column.name != "id"}
    for name in values:
        if name not in fields:
            raise InvalidProductError(
                f"The catalogue has no column {name:.100}: there are {', '.join(fields)}.{did_you_mean(name, fields)}"
            )
    try:
        return {name: parse_value(value, fields[name]) for name, value in values.items()}
    except UserError as error:
        raise InvalidProductError(str(error)) from error


def _fit_temperature(network: SearchNetwork) -> float | None:
    """Fit the temperature that calibrates the network's probabilities; None without validation images."""
    from fashion_cnn.inference.predictor import read_validation_predictions
    from fashion_cnn.metrics.calibration import calibrate

    predictions = read_validation_predictions(network.run, flip_average=network.flip_average)
    return None if predictions is None else calibrate(predictions).temperature


def _columns_before(catalogue: Catalogue, *, rebuild: bool) -> set[str]:
    """Return `Catalogue.non_empty_columns`; the empty set for a damaged catalogue that is rebuilt."""
    try:
        return catalogue.non_empty_columns()
    except DamagedCatalogueError:
        if not rebuild:
            raise
        return set()


def _embed(
    products: Products, network: SearchNetwork, pictures: Sequence[tuple[int, Picture]], metadata: CatalogueMetadata
) -> pa.Table:
    """Build the catalogue rows of products from their row numbers and pictures."""
    images = np.stack([np.asarray(picture.prepared) for _, picture in pictures])
    output = embed(network, images)
    probabilities = softmax(output.logits, metadata.temperature or 1.0)
    vectors = search_vectors(output, metadata.class_weight)
    table = products.table.take([row for row, _ in pictures])
    columns = {
        "key": pa.array([products.content_keys[row] for row, _ in pictures]),
        "seen_as": pa.array([network.class_names[label] for label in probabilities.argmax(axis=1).tolist()]),
        "confidence": pa.array(probabilities.max(axis=1), pa.float32()),
        "thumbnail": pa.array([picture.thumbnail for _, picture in pictures], pa.binary()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    for name, values in network.measure_columns(images).items():
        # A column of this name in the shop's own table is kept.
        if pa.types.is_string((given := table[name]).type):
            table = table.set_column(table.column_names.index(name), name, pc.coalesce(given, pa.array(values)))
    categories = pc.coalesce(table["category"], columns["seen_as"])
    table = table.set_column(table.column_names.index("category"), "category", categories)
    return add_joined_text(table, metadata.text_columns)
