"""State of the server: the newest version of the catalogue with its model, replaced as a whole when it changes."""

import gc
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from fashion_cnn.errors import UserError, did_you_mean, printable
from fashion_cnn.inference.onnx_network import OnnxNetwork, OnnxPredictor
from fashion_cnn.retrieval.catalogue import Catalogue, CatalogueMetadata, TableVersion
from fashion_cnn.retrieval.products import custom_columns
from fashion_cnn.retrieval.searcher import Hit, Query, Searcher
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.vectors import SearchNetwork, load_network
from fashion_cnn.retrieval.web.developer import Projection, project
from fashion_cnn.retrieval.web.errors import NoCatalogueError, UnknownProductError
from fashion_cnn.retrieval.web.query import SearchQuery
from fashion_cnn.retrieval.web.views import MAX_SAMPLES, Sample
from fashion_cnn.runs import Run

if TYPE_CHECKING:
    from fashion_cnn.concepts import Concepts
    from fashion_cnn.inference.predictor import Predictor
    from fashion_cnn.metrics.calibration import Calibration

# Columns with more distinct values, or with a longer value in characters, get no filter.
_MAX_FILTER_VALUES = 30
_MAX_VALUE_LENGTH = 60
_MAX_CATEGORIES = 200
# Thumbnails of all products are kept in memory up to this size in bytes; otherwise they are read when needed.
_THUMBNAIL_MEMORY = 128_000_000


@dataclass(frozen=True)
class Filter:
    """The check boxes of a column with few distinct values.

    Attributes:
        column: its name.
        counts: its values, each with the number of products.
    """

    column: str
    counts: tuple[tuple[str, int], ...]

    @property
    def field(self) -> str:
        """The form field that sends the values."""
        return "category" if self.column == "category" else "where"

    @property
    def prefix(self) -> str:
        """Text in front of each value in the form field."""
        return "" if self.column == "category" else f"{self.column}:"

    def selected(self, query: SearchQuery) -> set[str]:
        """Return the form values of this filter that the query contains."""
        return {f"{self.prefix}{value}" for value, _ in self.counts} & set(getattr(query, self.field))


class CatalogueView:
    """One version of the catalogue with everything that a search needs.

    Args:
        searcher: searches this version.
        predictor: predicts the classes of query pictures.
        concepts: concepts that the network was taught, read already; None without any.

    Attributes:
        snapshot: the catalogue's products.
        concept_names: names of the concepts.
        loaded_at: when it was loaded, in seconds since 1970.
        category_count: number of categories.
        categories: filter of the 200 largest categories.
        filters: all filters that have values.
        price_range: lowest and highest price; None if no product has one.
    """

    def __init__(
        self, searcher: Searcher, predictor: "Predictor | OnnxPredictor", concepts: "Concepts | None" = None
    ) -> None:
        self.searcher = searcher
        self.predictor = predictor
        self._concepts = concepts
        self.concept_names = [concept.name for concept in concepts.all] if concepts else []
        self.loaded_at = time.time()
        self.snapshot = searcher.snapshot
        attributes = self.snapshot.attributes
        # Reading thumbnails from disk would take a third of the time of a search.
        self.snapshot.cache_thumbnails(_THUMBNAIL_MEMORY)
        # A first search warms the caches, so that no visitor waits for them.
        searcher.search(Query(pictures=(np.zeros(searcher.network.preparation.image_shape, np.uint8),)))
        counts = _value_counts(attributes["category"])
        self.category_count = len(counts)
        self.categories = Filter("category", _largest(counts, _MAX_CATEGORIES))
        self.filters = [each for each in (self.categories, *_column_filters(attributes)) if each.counts]
        prices = pc.min_max(attributes["price"]).as_py()
        self.price_range: tuple[float, float] | None = None if prices["min"] is None else (prices["min"], prices["max"])

    def require(self, ids: Sequence[str]) -> None:
        """Check that products exist.

        Raises:
            UnknownProductError: for the first id that the catalogue does not have.
        """
        for product_id in ids:
            if product_id not in self.snapshot.row_by_id:
                raise UnknownProductError(product_id)

    def concept_directions(self, names: Sequence[str]) -> tuple[ArrayLike, ...]:
        """Return the direction `(E,)` of each of these concepts in the embedding space.

        Raises:
            UserError: for the first name that no concept has.
        """
        if names and not self._concepts:
            raise UserError(f"concept={names[0]}: there is no such concept. There are: none.")
        return tuple(self._concepts.direction(name) for name in names) if self._concepts else ()

    def products(self, ids: Sequence[str]) -> tuple[Hit, ...]:
        """Read products.

        Raises:
            UnknownProductError: for the first id that the catalogue does not have.
        """
        self.require(ids)
        return self.searcher.fetch_by_id(ids)

    @cached_property
    def projection(self) -> Projection:
        """A map of the products, computed on first use."""
        return project(self.snapshot)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The first product of each of the ten largest categories, read on first use."""
        first_ids: dict[str, str] = {}
        columns = (self.snapshot.attributes[name].to_pylist() for name in ("id", "category"))
        for product_id, category in zip(*columns, strict=True):
            first_ids.setdefault(category, product_id)
        names = [name for name, _ in _largest(dict(self.categories.counts), MAX_SAMPLES)]
        thumbnails = self.snapshot.thumbnails([self.snapshot.row_by_id[first_ids[name]] for name in names])
        return tuple(
            Sample(name, thumbnail, SearchQuery(like=[first_ids[name]]).link())
            for name, thumbnail in zip(names, thumbnails, strict=True)
        )


def _column_filters(attributes: pa.Table) -> list[Filter]:
    columns = [
        field.name
        for field in custom_columns(attributes.schema)
        # A colon would end the column's name in a link.
        if (pa.types.is_string(field.type) or pa.types.is_boolean(field.type)) and ":" not in field.name
    ]
    counts = {name: _value_counts(attributes[name].cast(pa.string())) for name in columns}
    return [
        Filter(name, _largest(values, _MAX_FILTER_VALUES))
        for name, values in counts.items()
        if 1 < len(values) <= _MAX_FILTER_VALUES
        # Browsers change line breaks in form values.
        and all(len(value) <= _MAX_VALUE_LENGTH and not set(value) & set("\r\n") for value in values)
    ]


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {each["values"]: each["counts"] for each in pc.value_counts(pc.drop_null(column)).to_pylist()}


def _largest(counts: dict[str, int], size: int) -> tuple[tuple[str, int], ...]:
    """Return the most frequent values with their counts, in alphabetical order."""
    return tuple(sorted(sorted(counts.items(), key=lambda item: -item[1])[:size]))


class CatalogueState:
    """The newest version of a catalogue that can be searched.

    Args:
        run: the training run whose network made the catalogue.
        catalogue: the catalogue, which may not exist yet.
        reject: fraction of the validation images that are predicted as none of the classes.
        hidden_columns: custom columns that no response shows and no search filters.
        backend: what computes the network: `torch`, or `onnx` from the file of `export embedding=pretrained`, without
            calibration and concepts.

    Attributes:
        view: the version that is searched; None before there is one.
        problem: why the newest version, or the newest concepts, could not be loaded, if so; it may name folders.
        unloaded: what could not be loaded, `version` or `concepts`.
        updated_at: when another version replaced the first, in seconds since 1970.
        calibrated: whether class probabilities are calibrated.

    Raises:
        UserError: if the catalogue was made by another network, or a hidden column is none of its custom columns.
    """

    def __init__(
        self,
        run: Run,
        catalogue: Catalogue,
        *,
        reject: float,
        hidden_columns: Sequence[str] = (),
        backend: str = "torch",
    ) -> None:
        self.run = run
        self.catalogue = catalogue
        self.view: CatalogueView | None = None
        self.problem: str | None = None
        self.unloaded = "version"
        self.updated_at: float | None = None
        # The key says whether the network averages over mirror images.
        self._calibrations: dict[bool, Calibration] = {}
        self._backend = backend
        self._hidden_columns = hidden_columns
        self.calibrated = False
        if backend == "torch":
            self._calibrate(reject)
        self._refreshing = threading.Lock()
        self._network: SearchNetwork | None = None
        self._rejected: TableVersion | None = None
        self._concepts: Concepts | None = None
        self._concepts_changed: float | None = None
        if catalogue.exists():
            self.report(self._load_newest(), unloaded="concepts")

    def _calibrate(self, reject: float) -> None:
        # Only here: the other backend does without torch.
        from fashion_cnn.inference.predictor import load_calibration

        for flip_average in (False, True):
            calibration, warning = load_calibration(self.run, reject=reject, flip_average=flip_average)
            self._calibrations[flip_average] = calibration
        self.calibrated = warning is None
        if warning:
            print(warning, file=sys.stderr)

    def require_view(self) -> CatalogueView:
        """Return the version to search in, which does not change when a newer one is loaded.

        Raises:
            NoCatalogueError: if there is none yet.
        """
        if self.view is None:
            raise NoCatalogueError
        return self.view

    def refresh(self) -> None:
        """Load the newest version of the catalogue and the network's newest concepts, if they changed.

        An error is stored as `problem`, and the loaded version stays in use.
        """
        # Beside the regular checks, each change of a product calls this in a thread of its own.
        with self._refreshing:
            self._refresh()

    def _refresh(self) -> None:
        problem: str | None = None
        unloaded = "concepts"
        try:
            if self.view is None and not self.catalogue.exists():
                return
            newest = self.catalogue.table_version()
            if newest == self._rejected:
                return
            if self.view is None or newest != self.view.snapshot.table_version:
                problem = self._load_newest()
                print(f"{self.catalogue.uri}: loaded version {newest.version}.", file=sys.stderr)
            elif self._concepts_changed != self._concepts_time():
                problem = self._load_concepts(self.view.searcher.network)
                if problem is None:
                    self._publish(self.view.searcher)
        except Exception as error:  # stores raise errors of their own kinds
            problem, unloaded = str(error) or type(error).__name__, "version"
        self.report(problem, unloaded=unloaded)

    def report(self, problem: str | None, *, unloaded: str = "version") -> None:
        """Store and log why the catalogue (`version`), or its `concepts`, cannot be loaded; None if they can again."""
        if problem and problem != self.problem:
            print(printable(problem), file=sys.stderr)
        self.problem, self.unloaded = problem, unloaded

    def describe_problem(self, *, with_reason: bool) -> str | None:
        """Return a sentence for clients; None without a problem.

        Args:
            with_reason: add the reason, which may name folders of the server.
        """
        problem, summary = self.problem, f"The newest {self.unloaded} cannot be loaded"
        if problem is None:
            return None
        return f"{summary}: {problem}" if with_reason else f"{summary}. The server's log has the reason."

    def _load_newest(self) -> str | None:
        """Load the newest version; return why its concepts could not be loaded, None if they could."""
        # Loaded before the snapshot, and again at each refresh: a missing file, such as an export, may be there later.
        self._network_for(self.catalogue.metadata())
        snapshot = Snapshot(self.catalogue, self._hidden_columns)
        is_first = self.view is None
        if is_first:
            self._check_hidden_columns(snapshot)
        network = self._network_for(snapshot.metadata)
        try:
            searcher = Searcher(snapshot, network)
        except UserError:
            # This version is of another network: it is not read again.
            self._rejected = snapshot.table_version
            raise
        problem = self._load_concepts(network)
        if not is_first:
            # Before the new version is visible: a page of it says that the catalogue was updated.
            self.updated_at = time.time()
        self._publish(searcher)
        if not is_first:
            # With Python 3.13 LanceDB keeps the frames of its callers, and with them the former snapshot, in a cycle.
            gc.collect()
        return problem

    def _check_hidden_columns(self, snapshot: Snapshot) -> None:
        """Refuse a name that no column has: the column that was meant would be shown."""
        custom = [field.name for field in custom_columns(snapshot.schema)]
        for name in self._hidden_columns:
            if name not in custom:
                raise UserError(
                    f"hidden_columns={name}: the catalogue has no such column. Columns that can be hidden: "
                    f"{', '.join(custom) or 'none'}.{did_you_mean(name, custom)}"
                )

    def _load_concepts(self, network: SearchNetwork) -> str | None:
        """Load the concepts taught to the network.

        Returns:
            None, or why they cannot be loaded; then the earlier ones stay, unless they belong to another network.
        """
        if self._backend == "onnx":
            return None
        from fashion_cnn.concepts import Concepts

        changed = self._concepts_time()
        concepts = Concepts(self.run, network.identity)
        try:
            concepts.load()
        except UserError as error:
            if self._concepts is not None and self._concepts.network != network.identity:
                self._concepts = self._concepts_changed = None
            return str(error)
        self._concepts, self._concepts_changed = concepts, changed
        return None

    def _publish(self, searcher: Searcher) -> None:
        """Replace the view by one with this searcher and the loaded concepts."""
        network = searcher.network
        if isinstance(network, OnnxNetwork):
            self.view = CatalogueView(searcher, OnnxPredictor(network))
            return
        from fashion_cnn.inference.network import EmbeddingNetwork
        from fashion_cnn.inference.predictor import Predictor

        assert isinstance(network, EmbeddingNetwork)
        calibration = self._calibrations[network.flip_average]
        predictor = Predictor(network, calibration)
        if self._concepts is not None and self._concepts_changed is not None:
            # Concepts were learned with mirror images, even if the catalogue was indexed without.
            network = network if network.flip_embeddings else network.with_mirror_images()
            needs_concept = network.pretrained is not None and bool(self._concepts.all)
            predictor = Predictor(network, calibration, self._concepts.recognise, needs_concept=needs_concept)
        # A single assignment: a request sees either the old view or the new one.
        self.view = CatalogueView(searcher, predictor, self._concepts)

    def _concepts_time(self) -> float | None:
        """Return when a concept was last taught or removed, in seconds since 1970; None if concepts are not used."""
        is_used = self._backend == "torch" and self.run.concepts.exists()
        return self.run.concepts.stat().st_mtime if is_used else None

    def _network_for(self, metadata: CatalogueMetadata) -> SearchNetwork:
        """Return the run's network with the settings that the catalogue was made with."""
        loaded = self._network
        settings = (metadata.flip_average, metadata.invert, metadata.pretrained)
        if loaded and (loaded.flip_average, loaded.preparation.invert, loaded.pretrained) == settings:
            return loaded
        self._network = load_network(self.run, metadata, backend=self._backend)
        return self._network
