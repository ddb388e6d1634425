"""Time, memory and recall of a catalogue of a million products with made vectors.

python scripts/benchmarks/large_catalogue.py FOLDER [--products 1000000] [--dimensions 1528] [--exact]

Random vectors without structure have no near neighbours, which no real catalogue resembles. These lie around one centre
per 200 products, in 32 random directions that all of them share and a little noise in all dimensions. Queries are made
in the same way. The catalogue is written to FOLDER, and used again if it is there.

--exact searches all vectors in memory, as below `approximate_above` products, in place of the vector index.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fashion_cnn.retrieval.approximate import update_vector_index, vector_index_of
from fashion_cnn.retrieval.catalogue import Catalogue, CatalogueMetadata
from fashion_cnn.retrieval.snapshot import Snapshot

# Products per centre, shared directions, and lengths of the deviations relative to the centre.
PER_CENTRE, DIRECTIONS, SPREAD, NOISE = 200, 32, 0.5, 0.2
BATCH, QUERIES, TOP_K = 20_000, 200, 12
THUMBNAIL_BYTES = 3000


class VectorMaker:
    """Makes unit vectors `(N, dimensions)` around the centres."""

    def __init__(self, products: int, dimensions: int) -> None:
        self.random = np.random.default_rng(0)
        self.centres = self._unit((max(products // PER_CENTRE, 1), dimensions))
        self.directions = self._unit((DIRECTIONS, dimensions))

    def _unit(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        vectors = self.random.standard_normal(shape, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def make(self, count: int) -> NDArray[np.float32]:
        centres = self.centres[self.random.integers(len(self.centres), size=count)]
        along = self.random.standard_normal((count, DIRECTIONS), dtype=np.float32) * (SPREAD / DIRECTIONS**0.5)
        vectors = centres + along @ self.directions + NOISE * self._unit((count, centres.shape[1]))
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def batch_of(maker: VectorMaker, start: int, count: int) -> pa.Table:
    """Make the rows of the products `start` to `start + count`."""
    numbers = range(start, start + count)
    vectors = maker.make(count)
    return pa.table(
        {
            "id": [f"p{number:08}" for number in numbers],
            "key": [str(number) for number in numbers],
            "title": [f"{'blue' if number % 2 else 'red'} shirt {number}" for number in numbers],
            "category": ["Shirt" if number % 3 else "Bag" for number in numbers],
            "price": [float(number % 200) for number in numbers],
            "seen_as": ["Shirt"] * count,
            "confidence": pa.array([0.5] * count, pa.float32()),
            "thumbnail": pa.array([maker.random.bytes(THUMBNAIL_BYTES) for _ in numbers], pa.binary()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
        }
    )


def resident_gigabytes(field: str = "VmRSS") -> float:
    """Return the resident memory of this process now, or at most (VmHWM)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024**2


def timed(label: str, start: float) -> None:
    print(f"{label}: {time.perf_counter() - start:.0f} s, resident {resident_gigabytes():.1f} GB", flush=True)


def write(catalogue: Catalogue, maker: VectorMaker, products: int, dimensions: int) -> None:
    """Write the products as `index` does, without the computation of the vectors."""
    metadata = CatalogueMetadata(network="made", run="none", dimensions=dimensions, flip_average=False, invert="auto")
    start = time.perf_counter()
    with catalogue.transaction():
        catalogue.begin(metadata, [])
        for first in range(0, products, BATCH):
            catalogue.stage(batch_of(maker, first, min(BATCH, products - first)))
        timed(f"{products:,} products made and staged", start)
        start = time.perf_counter()
        catalogue.commit([f"p{number:08}" for number in range(products)])
    timed("published, with the full-text index", start)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the catalogue if it is missing, then index, open and search it; prints what each takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the catalogue")
    parser.add_argument("--products", type=int, default=1_000_000, help="number of products")
    parser.add_argument("--dimensions", type=int, default=1528, help="length of a vector")
    parser.add_argument("--exact", action="store_true", help="search all vectors in memory")
    options = parser.parse_args(arguments)
    catalogue = Catalogue(str(options.folder))
    maker = VectorMaker(options.products, options.dimensions)
    if not catalogue.exists():
        write(catalogue, maker, options.products, options.dimensions)
    with catalogue.transaction():
        table = catalogue.open_latest()
        if options.exact or vector_index_of(table) is None:
            start = time.perf_counter()
            index = update_vector_index(table, None if options.exact else options.products - 1)
            timed("vector index", start)
            print(index)
    size = sum(file.stat().st_size for file in options.folder.rglob("*") if file.is_file())
    print(f"on disk: {size / 1e9:.1f} GB")
    start = time.perf_counter()
    snapshot = Snapshot(catalogue)
    timed("opened", start)
    elapsed = []
    for query in maker.make(QUERIES):
        start = time.perf_counter()
        snapshot.nearest(query, TOP_K)
        elapsed.append(1000 * (time.perf_counter() - start))
    cuts = statistics.quantiles(elapsed, n=20)
    print(
        f"{QUERIES} searches for {TOP_K}: p50 {cuts[9]:.1f} ms, p95 {cuts[18]:.1f} ms; resident "
        f"{resident_gigabytes():.1f} GB, at most {resident_gigabytes('VmHWM'):.1f} GB"
    )


if __name__ == "__main__":
    main()
