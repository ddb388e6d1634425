"""Nearest-neighbour searches in the vectors of a catalogue: this project and other libraries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import lancedb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fashion_cnn.retrieval.snapshot import Snapshot

# Maps a unit vector (D,) to the rows of the nearest vectors, nearest first.
Way = Callable[[NDArray[np.float32]], list[int]]


def ways(snapshot: Snapshot, top_k: int, folder: Path) -> dict[str, Way]:
    """Prepare each variant on the snapshot's vectors `(N, D)`; LanceDB writes its tables to `folder`."""
    vectors = snapshot.vectors
    # In row-major order, as the other libraries expect.
    array = np.ascontiguousarray(vectors)
    flat = faiss.IndexFlatIP(array.shape[1])
    flat.add(array)
    exact, approximate = (lance_table(array, folder / name) for name in ("exact", "approximate"))
    approximate.create_index(metric="cosine", vector_column_name="vector")

    def ours(query: NDArray[np.float32]) -> list[int]:
        return [row for row, _ in snapshot.nearest(query, top_k)]

    def numpy(query: NDArray[np.float32]) -> list[int]:
        scores = array @ query
        best = np.argpartition(scores, -top_k)[-top_k:]
        return best[np.argsort(-scores[best])].tolist()

    def faiss_flat(query: NDArray[np.float32]) -> list[int]:
        return flat.search(query[None], top_k)[1][0].tolist()

    def lance_exact(query: NDArray[np.float32]) -> list[int]:
        return _rows(exact.search(query).distance_type("cosine").bypass_vector_index(), top_k)

    def lance_approximate(query: NDArray[np.float32]) -> list[int]:
        return _rows(approximate.search(query).distance_type("cosine"), top_k)

    return {
        "snapshot": ours,
        "numpy": numpy,
        "faiss": faiss_flat,
        "lancedb, exact": lance_exact,
        "lancedb, default index": lance_approximate,
    }


def lance_table(array: np.ndarray[Any, Any], folder: Path) -> Any:
    """Create a LanceDB table of vectors and their row numbers."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
    table = pa.table({"row": pa.array(range(len(array))), "vector": column})
    return lancedb.connect(folder).create_table("vectors", table)


def _rows(query: Any, top_k: int) -> list[int]:
    return query.select(["row", "_distance"]).limit(top_k).to_arrow()["row"].to_pylist()


def recall(nearest: list[list[int]], exact: list[list[int]]) -> float:
    """Return the mean share of the exact nearest rows among `nearest`."""
    shares = [len(set(rows) & set(truth)) / len(truth) for rows, truth in zip(nearest, exact, strict=True)]
    return sum(shares) / len(shares)
