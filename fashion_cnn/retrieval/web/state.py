"""State of the server: the newest version of the catalogue, ready to be searched, its network, and latencies."""

import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import torch

from fashion_cnn.concepts import Concepts
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.inference.predictor import Predictor, calibration_of
from fashion_cnn.retrieval.catalogue import Catalogue, CatalogueMetadata, TableVersion, custom_columns
from fashion_cnn.retrieval.searcher import Query, Searcher
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.vectors import load_network
from fashion_cnn.retrieval.web.errors import NoCatalogue
from fashion_cnn.retrieval.web.query import Asked
from fashion_cnn.retrieval.web.views import Sample, shown
from fashion_cnn.runs import Run

if TYPE_CHECKING:
    from fashion_cnn.metrics.calibration import Calibration

STAGES = ("decode", "embed", "search", "attributes and thumbnails")
TOTAL = "total"
_MOST_POINTS = 2000
# Categories in the projection: as many colours as can be told from each other.
_MOST_COLOURS = 10
OTHERS = "all others"
# A column with more different values than this is no choice of a few.
_MOST_CHOICES = 30
# Nor is one with a longer value, in characters: it says something of each product.
_LONGEST_CHOICE = 60
_MOST_CATEGORIES = 200
_MOST_SAMPLES = 10
# Thumbnails held in memory; more than these are read as they are needed.
_THUMBNAIL_BYTES = 128_000_000


@dataclass
class Stopwatch:
    """milliseconds: of each stage of one search that was measured."""

    milliseconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measuring(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.milliseconds[stage] = (time.perf_counter() - begun) * 1000


@dataclass(frozen=True)
class Percentiles:
    """Of the newest searches that had this stage, in milliseconds."""

    stage: str
    count: int
    p50: float
    p95: float


class Latencies:
    """The newest `most` searches."""

    def __init__(self, most: int = 2000) -> None:
        self._by_stage: dict[str, deque[float]] = {stage: deque(maxlen=most) for stage in (*STAGES, TOTAL)}

    def add(self, watch: Stopwatch) -> None:
        for stage, milliseconds in watch.milliseconds.items():
            self._by_stage[stage].append(milliseconds)
        self._by_stage[TOTAL].append(sum(watch.milliseconds.values()))

    def totals(self) -> list[float]:
        return list(self._by_stage[TOTAL])

    def percentiles(self) -> list[Percentiles]:
        """Of each stage that any search had, the total last."""
        return [
            Percentiles(stage, len(values), _percentile(values, 0.5), _percentile(values, 0.95))
            for stage, values in ((stage, sorted(ring)) for stage, ring in self._by_stage.items())
            if values
        ]


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


@dataclass(frozen=True)
class Projection:
    """points: by category, the largest first, the places `(x, y)` of some of its products, 0 to 1. explained: the
    share of the variance that the plane holds. sampled: how many products are shown.
    """

    points: dict[str, tuple[tuple[float, float], ...]]
    explained: float
    sampled: int


def projection(snapshot: Snapshot) -> Projection:
    """The principal components of 2,000 products at most, picked by chance and the same each time."""
    if not len(snapshot):
        return Projection({}, 0.0, 0)
    picked = torch.randperm(len(snapshot), generator=torch.Generator().manual_seed(0))[:_MOST_POINTS].tolist()
    categories = snapshot.attributes["category"].to_pylist()
    vectors = snapshot.vectors_of(picked)
    centred = vectors - vectors.mean(dim=0)
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    places = centred @ axes[:2].T
    if places.shape[1] < 2:  # of a single product, or of vectors of one dimension
        places = torch.nn.functional.pad(places, (0, 2 - places.shape[1]))
    low, high = places.amin(dim=0), places.amax(dim=0)
    places = (places - low) / (high - low).clamp(min=1e-12)
    named = [name for name, _ in Counter(categories).most_common(_MOST_COLOURS)]
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in (*named, OTHERS)}
    for row, (x, y) in zip(picked, places.tolist(), strict=True):
        points[categories[row] if categories[row] in points else OTHERS].append((x, y))
    share = (spread[:2].square().sum() / spread.square().sum().clamp(min=1e-12)).item()
    return Projection({name: tuple(those) for name, those in points.items() if those}, share, len(picked))


@dataclass(frozen=True)
class Choice:
    """A column, and its values with the number of products that hold each, as a person chooses among them."""

    column: str
    values: tuple[tuple[str, int], ...]


class Storefront:
    """searcher, predictor: of the catalogue's version that was the newest at `since`, in seconds since 1970.
    categories: the largest 200, of `category_count`.
    """

    def __init__(self, searcher: Searcher, predictor: Predictor) -> None:
        self.searcher = searcher
        self.predictor = predictor
        self.since = time.time()
        self.snapshot = searcher.snapshot
        attributes = self.snapshot.attributes
        # Read from disk they were a third of the time of a search.
        self.snapshot.cache_thumbnails(_THUMBNAIL_BYTES)
        # What is made at first use is made now, so that the first to ask need not wait.
        searcher.search(Query(pictures=(torch.zeros(searcher.network.preparation.image_shape, dtype=torch.uint8),)))
        counted = _counted(attributes["category"])
        self.categories = Choice("category", _largest(counted, _MOST_CATEGORIES))
        self.category_count = len(counted)
        self.choices = tuple(_choices(attributes))
        prices = pc.min_max(attributes["price"]).as_py()
        self.prices: tuple[float, float] | None = None if prices["min"] is None else (prices["min"], prices["max"])

    @cached_property
    def projection(self) -> Projection:
        """Where the products lie among each other; made when it is first looked at."""
        return projection(self.snapshot)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The first product of each of the largest categories; read when they are first shown."""
        firsts: dict[str, str] = {}
        wanted = [name for name, _ in sorted(self.categories.values, key=lambda one: -one[1])[:_MOST_SAMPLES]]
        columns = (self.snapshot.attributes[name].to_pylist() for name in ("id", "category"))
        for one, category in zip(*columns, strict=True):
            firsts.setdefault(category, one)
        names = sorted(wanted)
        thumbnails = self.snapshot.thumbnails([self.snapshot.row_by_id[firsts[name]] for name in names])
        return tuple(
            Sample(name, shown(thumbnail), Asked(like=[firsts[name]]).link())
            for name, thumbnail in zip(names, thumbnails, strict=True)
        )


def _choices(attributes: pa.Table) -> Sequence[Choice]:
    own = custom_columns(attributes.schema)
    texts = [field.name for field in own if pa.types.is_string(field.type) or pa.types.is_boolean(field.type)]
    # What else is in a link before a colon would be the column's name.
    counted = ((name, _counted(attributes[name].cast(pa.string()))) for name in texts if ":" not in name)
    return [
        Choice(name, _largest(values, _MOST_CHOICES))
        for name, values in counted
        if 1 < len(values) <= _MOST_CHOICES
        and all(len(one) <= _LONGEST_CHOICE and not set(one) & set("\r\n") for one in values)
    ]


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    """The number of each value."""
    counts = pc.value_counts(pc.drop_null(column))
    return {one["values"]: one["counts"] for one in counts.to_pylist()}


def _largest(counted: dict[str, int], most: int) -> tuple[tuple[str, int], ...]:
    """The values that come up most, with their numbers, in the order of their names."""
    return tuple(sorted(sorted(counted.items(), key=lambda one: -one[1])[:most]))


class Shop:
    """storefront: the newest version of the catalogue that could be taken over, None before there is one. problem: why
    the newest could not be, if so. changed: when another version was taken over, in seconds since 1970. calibrated:
    whether the network's probabilities are.

    reject: the share of validation images that are called none of the classes.
    Raises UserError where the catalogue is of another network.
    """

    def __init__(self, run: Run, catalogue: Catalogue, *, reject: float) -> None:
        self.run = run
        self.catalogue = catalogue
        self.storefront: Storefront | None = None
        self.problem: str | None = None
        self.changed: float | None = None
        self.latencies = Latencies()
        # By whether the network looks at mirror images, too.
        self._calibrations: dict[bool, Calibration] = {}
        for flipped in (False, True):
            self._calibrations[flipped], remark = calibration_of(run, reject=reject, flip_average=flipped)
        self.calibrated = remark is None
        if remark:
            print(remark, file=sys.stderr)
        self._network: TrainedNetwork | None = None
        self._refused: TableVersion | None = None
        self._taught: float | None = None
        self._concepts: Concepts | None = None
        if catalogue.exists():
            self.problem = self._take_over()

    def open(self) -> Storefront:
        """What to search in; it stays as it is for whoever holds it. Raises NoCatalogue."""
        if self.storefront is None:
            raise NoCatalogue
        return self.storefront

    def refresh(self) -> None:
        """Take over the catalogue's newest version, if that is another one, and what the network has been taught since;
        what is in the way becomes `problem`.
        """
        problem = None
        try:
            if self.storefront is None and not self.catalogue.exists():
                return
            newest = self.catalogue.table_version()
            if newest == self._refused:
                return
            if self.storefront is None or newest != self.storefront.snapshot.table_version:
                problem = self._take_over()
                self.changed = time.time()
                print(f"{self.catalogue.uri}: version {newest.version} is searched now.", file=sys.stderr)
            elif self._taught != self._newest_teaching():
                problem = self._learn(self.storefront.searcher.network)
                if problem is None:
                    self._open(self.storefront.searcher)
        except Exception as error:  # each store has errors of its own, and searching goes on with what there is
            problem = str(error) or type(error).__name__
        if problem and problem != self.problem:
            print(problem, file=sys.stderr)
        self.problem = problem

    def _take_over(self) -> str | None:
        """Open the catalogue's newest version; why its concepts are those of before, if they are."""
        snapshot = Snapshot(self.catalogue)
        try:
            searcher = Searcher(snapshot, self._network_for(snapshot.metadata))
        except UserError:
            # Another network's: it need not be read again to be refused again.
            self._refused = snapshot.table_version
            raise
        problem = self._learn(searcher.network)
        self._open(searcher)
        return problem

    def _learn(self, network: TrainedNetwork) -> str | None:
        """Read what the network has been taught; where that cannot be, it knows what it knew, and why is returned."""
        taught = self._newest_teaching()
        concepts = Concepts(self.run, network.identity)
        try:
            concepts.load()
        except UserError as error:
            return str(error)
        self._concepts, self._taught = concepts, taught
        return None

    def _open(self, searcher: Searcher) -> None:
        """Open the shop, or open it again, with the concepts that were read."""
        network = searcher.network
        calibration = self._calibrations[network.flip_average]
        predictor = Predictor(network, calibration)
        if self._concepts is not None and self._taught is not None:
            # They were learned from mirror images too, whatever the catalogue's vectors are of.
            network = network if network.flip_embeddings else network.with_mirror_images()
            predictor = Predictor(network, calibration, self._concepts.recognise)
        # One assignment: a request sees the shop of before, or this one.
        self.storefront = Storefront(searcher, predictor)

    def _newest_teaching(self) -> float | None:
        """When a concept was last taught or forgotten, in seconds since 1970."""
        return self.run.concepts.stat().st_mtime if self.run.concepts.exists() else None

    def _network_for(self, about: CatalogueMetadata) -> TrainedNetwork:
        """The run's network, looking at pictures as it did for the catalogue."""
        before = self._network
        if before and (before.flip_average, before.preparation.invert) == (about.flip_average, about.invert):
            return before
        self._network = load_network(self.run, about)
        return self._network
