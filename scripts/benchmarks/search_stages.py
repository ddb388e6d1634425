"""Stages of one query from file to hits, and a load of many clients."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import resident_memory
from fashion_cnn.pictures.decoding import decode
from fashion_cnn.retrieval.catalogue import Catalogue
from fashion_cnn.retrieval.searcher import Query, Searcher
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.vectors import load_network, search_vectors, to_query
from fashion_cnn.runs import Run


def searcher_of(run: Run, catalogue: str) -> Searcher:
    snapshot = Snapshot(Catalogue(catalogue))
    return Searcher(snapshot, load_network(run, snapshot.metadata))


def time_query(searcher: Searcher, file: Path, top_k: int) -> dict[str, float]:
    """Measure seconds of each stage of a query with one picture file, and of the whole query."""
    seconds: dict[str, float] = {}
    network, snapshot = searcher.network, searcher.snapshot

    def timed(stage: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = call()
        seconds[stage] = time.perf_counter() - started
        return result

    picture = timed("decode", lambda: decode(file, min_pixels=network.preparation.min_pixels))
    prepared = timed("prepare", lambda: network.preparation(picture))
    weight = snapshot.metadata.class_weight
    direction = timed("embed", lambda: to_query(search_vectors(network.outputs(prepared[None]), weight)[0], weight))
    rows = timed("search", lambda: [row for row, _ in snapshot.nearest(direction, top_k)])
    timed("attributes", lambda: [snapshot.attributes_of(row) for row in rows])
    timed("thumbnails", lambda: snapshot.thumbnails(rows))

    def whole() -> None:
        prepared = network.preparation(decode(file, min_pixels=network.preparation.min_pixels))
        searcher.search(Query(pictures=(prepared,), top_k=top_k))

    timed("whole query", whole)
    return seconds


@dataclass(frozen=True)
class Load:
    """Result of a load test.

    Attributes:
        seconds: duration.
        latencies: of each query, in seconds.
        errors: messages of failed queries.
        resident: peak resident memory in bytes.
    """

    seconds: float
    latencies: list[float]
    errors: list[str]
    resident: int


def put_under_load(run: Path, catalogue: str, files: Sequence[Path], clients: int, seconds: float) -> Load:
    """Send queries from many threads without a pause; run in a new process, to measure the memory of a search alone."""
    searcher = searcher_of(Run(run), catalogue)
    latencies: list[float] = []
    errors: list[str] = []
    started = time.perf_counter()

    def send_queries(client: int) -> None:
        number = client
        while time.perf_counter() - started < seconds:
            query_started = time.perf_counter()
            try:
                preparation = searcher.network.preparation
                prepared = preparation(decode(files[number % len(files)], min_pixels=preparation.min_pixels))
                searcher.search(Query(pictures=(prepared,)))
                latencies.append(time.perf_counter() - query_started)
            except Exception as error:  # any error counts
                errors.append(f"{type(error).__name__}: {error}")
            number += clients

    threads = [threading.Thread(target=send_queries, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    resident = 0
    while any(thread.is_alive() for thread in threads):
        resident = max(resident, resident_memory())
        time.sleep(0.2)
    return Load(time.perf_counter() - started, latencies, errors, max(resident, resident_memory()))
