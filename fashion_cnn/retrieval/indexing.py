"""Products into a catalogue: what is new or changed is looked at, the rest left as it is."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import torch

from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.pictures import UnreadablePictureError
from fashion_cnn.retrieval.approximate import VectorIndex, update_vector_index
from fashion_cnn.retrieval.catalogue import PRODUCT_COLUMNS, Catalogue, CatalogueMetadata
from fashion_cnn.retrieval.products import Picture, Products
from fashion_cnn.retrieval.vectors import search_vectors, vector_dimensions

# So many products are written down together: what a stop costs at most.
_STAGED_TOGETHER = 2000


@dataclass(frozen=True)
class IndexingResult:
    """added, changed, unchanged, removed: numbers of products. gone: ids that are in the catalogue and no longer among
    the products, and were not removed. unreadable: by id, why a product's picture could not be read. emptied: columns
    that say nothing of any product any more. version: the catalogue's. approximate: the index that it is searched by;
    None where it is searched exactly.
    """

    added: int
    changed: int
    unchanged: int
    removed: int
    gone: tuple[str, ...]
    unreadable: dict[str, str]
    emptied: tuple[str, ...]
    version: int
    approximate: VectorIndex | None


def index_products(
    products: Products,
    catalogue: Catalogue,
    network: TrainedNetwork,
    *,
    class_weight: float = 0.0,
    prune: bool = False,
    rebuild: bool = False,
    approximate_above: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> IndexingResult:
    """Bring the catalogue up to the products, in one transaction at the end; a stopped one goes on when called again.

    class_weight: see `search_vectors`. prune: remove what the catalogue has and the products have not. rebuild: begin
    anew, with this network.
    approximate_above: of more products than that, have an index that looks at a part of them; None and 0: never.
    Raises UserError where no picture at all can be read, the catalogue holds another network's vectors, or another
    process indexes into it.
    """
    about = CatalogueMetadata(
        network=network.identity,
        run=str(network.run.path.absolute()),
        dimensions=vector_dimensions(network, class_weight),
        class_weight=class_weight,
        flip_average=network.flip_average,
        invert=network.preparation.invert,
        note=products.note,
    )
    own = [field for field in products.table.schema if field.name not in PRODUCT_COLUMNS]
    with catalogue.transaction():
        catalogue.begin(about, own, rebuild=rebuild)
        ids = products.ids
        before = {} if rebuild else catalogue.content_keys()
        filled = catalogue.non_empty_columns()
        wanted = [row for row, one in enumerate(ids) if before.get(one) != products.content_keys[row]]
        staged = catalogue.content_keys(staged=True)
        waiting = [row for row in wanted if staged.get(ids[row]) != products.content_keys[row]]
        unreadable: dict[str, str] = {}
        done = len(wanted) - len(waiting)
        with closing(products.pictures.read(waiting, network.preparation)) as read:
            while batch := list(islice(read, _STAGED_TOGETHER)):
                unreadable |= {
                    ids[row]: str(error) for row, error in batch if isinstance(error, UnreadablePictureError)
                }
                seen = [(row, picture) for row, picture in batch if isinstance(picture, Picture)]
                if seen:
                    catalogue.stage(_finished(products, network, seen, class_weight))
                done += len(batch)
                progress(done, len(wanted))
        ready = [ids[row] for row in wanted if ids[row] not in unreadable]
        if unreadable and not ready and not before:
            one, reason = next(iter(unreadable.items()))
            raise UserError(f"None of {len(ids)} pictures could be read, such as {one}: {reason}. Nothing was indexed.")
        catalogue.commit(ready, rebuild=rebuild)
        gone = sorted(before.keys() - set(ids))
        removed = catalogue.remove(gone) if prune and gone else 0
        approximate = update_vector_index(catalogue.open_latest(), approximate_above)
    changed = sum(one in before for one in ready)
    return IndexingResult(
        added=len(ready) - changed,
        changed=changed,
        unchanged=len(ids) - len(wanted),
        removed=removed,
        gone=() if prune else tuple(gone),
        unreadable=unreadable,
        emptied=tuple(sorted(filled - catalogue.non_empty_columns())) if filled else (),
        version=catalogue.table_version().version,
        approximate=approximate,
    )


def _finished(
    products: Products, network: TrainedNetwork, seen: Sequence[tuple[int, Picture]], class_weight: float
) -> pa.Table:
    """The catalogue's rows of these products."""
    looked = network.outputs(torch.stack([picture.prepared for _, picture in seen]))
    shares, labels = looked.logits.softmax(dim=1).max(dim=1)
    names = [network.class_names[label] for label in labels.tolist()]
    vectors = search_vectors(looked, class_weight)
    table = products.table.take([row for row, _ in seen])
    columns = {
        "key": [products.content_keys[row] for row, _ in seen],
        "seen_as": names,
        "confidence": pa.array(shares.tolist(), pa.float32()),
        "thumbnail": pa.array([picture.thumbnail for _, picture in seen], pa.binary()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().ravel()), vectors.shape[1]),
    }
    for name, column in columns.items():
        table = table.append_column(name, column if isinstance(column, pa.Array) else pa.array(column))
    categories = [given or seen_as for given, seen_as in zip(table["category"].to_pylist(), names, strict=True)]
    return table.set_column(table.column_names.index("category"), "category", pa.array(categories, pa.string()))
