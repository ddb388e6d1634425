"""The search service behind pages and API: from a query to its results, in worker threads with a short queue."""

import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import numpy as np
from anyio.to_thread import run_sync
from numpy.typing import ArrayLike, NDArray

from fashion_cnn.errors import LockedError, UserError, printable
from fashion_cnn.inference.prediction import Prediction
from fashion_cnn.pictures import Box, TooManyPixelsError, UnreadablePictureError
from fashion_cnn.pictures.isolation import PictureProcess
from fashion_cnn.retrieval.filters import TextColours
from fashion_cnn.retrieval.indexing import InvalidProductError, put_product
from fashion_cnn.retrieval.products import Picture
from fashion_cnn.retrieval.searcher import Hit, Query
from fashion_cnn.retrieval.vectors import embed
from fashion_cnn.retrieval.web.developer import DECODING, STAGES, Latencies, timed
from fashion_cnn.retrieval.web.errors import BusyError, HTTPError, UnknownProductError
from fashion_cnn.retrieval.web.query import SearchQuery, decode_picture
from fashion_cnn.retrieval.web.state import CatalogueState, CatalogueView
from fashion_cnn.retrieval.web.uploads import Uploads
from fashion_cnn.retrieval.web.views import Sample

Result = TypeVar("Result")
Files = Mapping[str, Sequence[bytes]]


class Workers:
    """Worker threads with a bounded queue.

    A request beyond it is refused at once: in a long queue, all would wait for responses that nobody reads any more.

    Args:
        threads: number of jobs that run at once.
        waiting: number of further jobs that may wait.
    """

    def __init__(self, *, threads: int, waiting: int) -> None:
        self._limiter = anyio.CapacityLimiter(threads)
        self._max_jobs = threads + waiting
        self._jobs = 0

    @property
    def running(self) -> int:
        """Number of jobs that run at the moment."""
        return self._limiter.borrowed_tokens

    async def run(self, job: Callable[[], Result], *, is_accepted: bool = False) -> Result:
        """Run a job in a thread and return its result.

        Args:
            job: the job.
            is_accepted: whether the request has had a job before, whose result a refusal would waste.

        Raises:
            BusyError: if the queue is full.
        """
        if not is_accepted and self._jobs >= self._max_jobs:
            raise BusyError
        self._jobs += 1
        try:
            return await run_sync(job, limiter=self._limiter)
        finally:
            self._jobs -= 1


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        hits: the products of the requested page.
        matching: number of products that match the filters and words.
        with_all_words: number of products that have all words; None without words.
        colours: the colours that the text names, which are a filter; None if it names none.
        pictures: pictures that hits should be similar to, `(C, H, W)` uint8.
        unlike_pictures: pictures that hits should not be similar to.
        predictions: classes of `pictures`, then of `unlike_pictures`.
        items_found: whether each of these pictures shows an item apart from its background; None if that is not known.
        milliseconds: duration of each stage.
    """

    hits: tuple[Hit, ...]
    matching: int
    with_all_words: int | None
    colours: TextColours | None
    pictures: tuple[ArrayLike, ...]
    unlike_pictures: tuple[ArrayLike, ...]
    predictions: tuple[Prediction, ...]
    items_found: tuple[bool | None, ...]
    milliseconds: dict[str, float]


def search_catalogue(
    view: CatalogueView, query: SearchQuery, *, top_k: int, uploads: Mapping[str, Sequence[ArrayLike]] | None = None
) -> SearchResult:
    """Search a version of the catalogue.

    Args:
        view: the version.
        query: the parameters.
        top_k: number of products per page.
        uploads: prepared pictures `(C, H, W)` uint8 in the fields `picture` and `unlike_picture`, beside the query's.

    Raises:
        HTTPError: if a product or a concept does not exist, a picture cannot be read, or a filter is invalid.
        UserError: if the catalogue cannot be read.
    """
    milliseconds: dict[str, float] = {}
    _, embedding, searching, describing = STAGES
    view.require([*query.like, *query.unlike])
    try:
        concepts = view.concept_directions(query.concept)
    except UserError as error:
        raise HTTPError(422, str(error)) from error
    image_shape = view.searcher.network.preparation.image_shape
    with timed(milliseconds, DECODING):
        pictures, unlike_pictures = (
            (*(decode_picture(text, image_shape) for text in getattr(query, name)), *(uploads or {}).get(name, ()))
            for name in ("picture", "unlike_picture")
        )
    searcher_query = Query(
        pictures=pictures,
        unlike_pictures=unlike_pictures,
        like=tuple(query.like),
        unlike=tuple(query.unlike),
        concepts=concepts,
        text=query.text,
        conditions=query.conditions(view.snapshot.attributes.schema),
        top_k=top_k,
        offset=(query.page - 1) * top_k,
    )
    with timed(milliseconds, embedding):
        outputs = view.searcher.embed(searcher_query)
        predictions: tuple[Prediction, ...] = ()
        if outputs is not None:
            network = view.predictor.network
            # Concepts may need the embeddings of mirror images too.
            same = network is view.searcher.network
            class_outputs = outputs if same else embed(network, np.stack([*pictures, *unlike_pictures]))
            predictions = tuple(view.predictor.classify(class_outputs, [Path()] * len(class_outputs.logits)))
    with timed(milliseconds, searching):
        ranking = view.searcher.rank(searcher_query, outputs)
    with timed(milliseconds, describing):
        hits = view.searcher.fetch(ranking).hits
    if outputs is None:  # without pictures these stages did not take place
        del milliseconds[DECODING], milliseconds[embedding]
    return SearchResult(
        hits=hits,
        matching=ranking.matching,
        with_all_words=ranking.with_all_words,
        colours=ranking.colours,
        pictures=pictures,
        unlike_pictures=unlike_pictures,
        predictions=predictions,
        items_found=tuple(view.searcher.network.finds_item(each) for each in (*pictures, *unlike_pictures)),
        milliseconds=milliseconds,
    )


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes:
        upload_mb: maximum size of the pictures of one request, in MB.
        pixels_million: maximum size of a decoded picture, in millions of pixels.
        decode_seconds: maximum processor time to decode the pictures of one request.
        seconds: maximum time for a request to arrive.
        threads: number of searches at once.
        waiting: number of further searches that may wait.
        memory_mb: maximum size of all uploads at once, in MB.
        connections: maximum number of connections.
        connections_per_address: maximum number of connections of one IP address.
        requests_per_minute: maximum number of requests of one client in a minute; None for any number.
        idle_seconds: maximum time to wait for a request, or for a client to read a response.
    """

    upload_mb: float = 10
    pixels_million: float = 16
    decode_seconds: float = 2
    seconds: float = 20
    threads: int = 2
    waiting: int = 64
    memory_mb: float = 64
    connections: int = 512
    connections_per_address: int = 128
    requests_per_minute: float | None = None
    idle_seconds: float = 10

    @property
    def pixels(self) -> int:
        """Maximum number of pixels of a decoded picture."""
        return int(self.pixels_million * 1e6)


@dataclass
class SearchService:
    """The search service that the routes of pages and API call.

    Attributes:
        state: the catalogue.
        limits: limits of the server.
        test_samples: sample searches with images of the run's test set; empty if it is not on this machine.
        top_k: number of products per page.
        is_writable: whether clients whose API keys allow it may change products.
        share_threads: called in the thread of each search before it, with the number of searches that run then.
        workers: threads for everything that takes time, except picture files.
        uploads: reads picture files.
        latencies: durations of recent searches.
    """

    state: CatalogueState
    limits: Limits
    test_samples: tuple[Sample, ...]
    top_k: int = 12
    is_writable: bool = False
    share_threads: Callable[[int], None] = lambda running: None
    workers: Workers = field(init=False)
    uploads: Uploads = field(init=False)
    latencies: Latencies = field(init=False, default_factory=Latencies)

    def __post_init__(self) -> None:
        limits = self.limits
        self.workers = Workers(threads=limits.threads, waiting=limits.waiting)
        # A queue of its own, so that searches do not wait for picture files; one large picture in memory at a time.
        self._decoder = Workers(threads=1, waiting=limits.waiting)
        # One change after another; each ends with loading the new version of the catalogue.
        self._writer = Workers(threads=1, waiting=limits.waiting)
        self._process = PictureProcess(max_pixels=limits.pixels, seconds=limits.decode_seconds)
        self.uploads = Uploads(
            max_bytes=int(limits.upload_mb * 1e6), memory=int(limits.memory_mb * 1e6), timeout=limits.seconds
        )

    def close(self) -> None:
        """End the process that decodes pictures."""
        self._process.close()

    async def search(
        self,
        view: CatalogueView,
        query: SearchQuery,
        files: Files | None = None,
        boxes: Sequence[Box | None] = (),
        top_k: int | None = None,
    ) -> SearchResult:
        """Run `search_catalogue` in a worker thread and record its latency.

        Args:
            view: the version of the catalogue to search in.
            query: the parameters.
            files: picture files in the fields `picture` and `unlike_picture`, beside the query's pictures.
            boxes: see `prepare`.
            top_k: number of products per page; None for that of the service.

        Raises:
            HTTPError: as `search_catalogue` and `prepare` do, or a `BusyError`.
        """
        view.require([*query.like, *query.unlike])
        seconds, uploads = await self.prepare(view, files or {}, boxes)

        def run() -> SearchResult:
            self.share_threads(self.workers.running)
            return search_catalogue(view, query, top_k=top_k or self.top_k, uploads=uploads)

        result = await self.workers.run(run)
        if uploads:
            result.milliseconds[DECODING] += 1000 * seconds
        # Listing the whole catalogue is not a search.
        if files or not query.is_empty:
            self.latencies.add(result.milliseconds)
        return result

    async def prepare(
        self, view: CatalogueView, files: Files, boxes: Sequence[Box | None] = ()
    ) -> tuple[float, dict[str, list[NDArray[np.uint8]]]]:
        """Decode picture files and prepare them for the network, in a process of limited time and memory.

        Args:
            view: version of the catalogue, whose network the pictures are for.
            files: the files of each field.
            boxes: the part that counts of each file in the field `picture`, None for the whole.

        Returns:
            The seconds that it took without waiting for others, and by field the pictures `(C, H, W)` uint8.

        Raises:
            HTTPError: if a file cannot be used; the message names which one. A `BusyError` if the queue is full.
        """
        prepared: dict[str, list[NDArray[np.uint8]]] = {}
        labels = [
            (name, "The picture" if len(contents) == 1 else f"Picture {number} of {len(contents)}")
            for name, contents in files.items()
            for number in range(1, len(contents) + 1)
        ]
        if not labels:
            return 0, prepared
        contents = [content for each in files.values() for content in each]
        parts = [
            box
            for name, each in files.items()
            for box in (boxes if name == "picture" and boxes else [None] * len(each))
        ]
        preparation = view.searcher.network.preparation

        def decode() -> tuple[float, Sequence[NDArray[np.uint8] | UnreadablePictureError]]:
            start = time.perf_counter()
            results = self._process.prepare(contents, preparation, parts)
            return time.perf_counter() - start, results

        seconds, results = await self._decoder.run(decode)
        # After an error there are no further results.
        for (name, label), result in zip(labels, results, strict=False):
            if isinstance(result, UnreadablePictureError):
                raise _unreadable(label, result)
            prepared.setdefault(name, []).append(result)
        return seconds, prepared

    async def find_items(self, view: CatalogueView, content: bytes) -> dict[str, list[dict[str, str]]]:
        """Find several items in a picture file, see `Preparation.find_items`.

        Args:
            view: version of the catalogue, for whose network an item would be prepared.
            content: the file.

        Returns:
            The items as API and pages return them, each with its box.

        Raises:
            HTTPError: if the file cannot be used. A `BusyError` if the queue is full.
        """
        preparation = view.searcher.network.preparation
        try:
            items = await self._decoder.run(lambda: self._process.find_items(content, preparation))
        except UnreadablePictureError as error:
            raise _unreadable("The picture", error) from error
        return {"items": [{"box": str(item)} for item in items]}

    async def put(
        self, view: CatalogueView, product_id: str, values: Mapping[str, Any], content: bytes | None = None
    ) -> tuple[bool, int]:
        """Add or change a product, see `put_product`, and load the new version of the catalogue.

        Args:
            view: the version that holds the network.
            product_id: id of the product.
            values: values of some columns.
            content: its picture file; None keeps that of the product.

        Returns:
            Whether the product is new, and the version of the catalogue.

        Raises:
            HTTPError: if the picture or a value cannot be used, or the catalogue cannot be changed now.
        """
        network = view.searcher.network
        picture: Picture | None = None
        if content is not None:
            try:
                pixels, thumbnail = await self._decoder.run(
                    lambda: self._process.prepare_product(content, network.preparation)
                )
            except UnreadablePictureError as error:
                raise _unreadable("The picture", error) from error
            picture = Picture(pixels, thumbnail)
        digest = "" if content is None else hashlib.sha256(content).hexdigest()
        catalogue = self.state.catalogue
        return await self._change(lambda: put_product(catalogue, network, product_id, values, picture, digest))

    async def remove(self, product_id: str) -> int:
        """Remove a product, load the new version of the catalogue, and return its number.

        Raises:
            HTTPError: if there is no such product, or the catalogue cannot be changed now.
        """

        def remove() -> None:
            with self.state.catalogue.transaction():
                if not self.state.catalogue.remove([product_id]):
                    raise UnknownProductError(product_id)

        _, version = await self._change(remove)
        return version

    async def _change(self, change: Callable[[], Result]) -> tuple[Result, int]:
        """Change the catalogue and load the new version. Returns the result and the number of the version."""

        def run() -> tuple[Result, int]:
            result = change()
            version = self.state.catalogue.table_version().version
            self.state.refresh()
            return result, version

        try:
            return await self._writer.run(run)
        except InvalidProductError as error:
            raise HTTPError(422, str(error)) from error
        except LockedError as error:
            raise HTTPError(503, "The catalogue is being indexed: try again later.", {"Retry-After": "10"}) from error
        except UserError as error:
            # Its message names folders of the server.
            print(printable(str(error)), file=sys.stderr)
            text = "The catalogue cannot be changed at the moment. The server's log has the reason."
            raise HTTPError(503, text, {"Retry-After": "60"}) from error

    async def samples(self, view: CatalogueView) -> tuple[Sample, ...]:
        """Return sample searches for a request whose search is done: images of the test set, otherwise products."""
        return self.test_samples or await self.workers.run(lambda: view.samples, is_accepted=True)


def _unreadable(label: str, error: UnreadablePictureError) -> HTTPError:
    return HTTPError(413 if isinstance(error, TooManyPixelsError) else 415, f"{label} {error}.")
