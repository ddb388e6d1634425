"""The search service behind pages and API: from a query to its results, in worker threads with a short queue."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio
import torch
from anyio.to_thread import run_sync
from PIL import Image
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.inference.predictor import Prediction
from fashion_cnn.pictures import Preparation, TooManyPixelsError, UnreadablePictureError, decode
from fashion_cnn.retrieval.searcher import Hit, Query
from fashion_cnn.retrieval.web.developer import STAGES, Latencies, timed
from fashion_cnn.retrieval.web.errors import BusyError, HTTPError
from fashion_cnn.retrieval.web.query import SearchQuery, decode_picture
from fashion_cnn.retrieval.web.state import CatalogueState, CatalogueView
from fashion_cnn.retrieval.web.uploads import Uploads
from fashion_cnn.retrieval.web.views import Sample

Result = TypeVar("Result")
Files = Mapping[str, Sequence[bytes]]


class Workers:
    """Worker threads with a bounded queue.

    A request beyond it is refused at once: a long queue would let everyone wait for answers that nobody reads any more.

    Args:
        threads: number of jobs that run at once.
        waiting: number of further jobs that may wait.
    """

    def __init__(self, *, threads: int, waiting: int) -> None:
        self._limiter = anyio.CapacityLimiter(threads)
        self._max_jobs = threads + waiting
        self._jobs = 0

    async def run(self, job: Callable[[], Result]) -> Result:
        """Run a job in a thread and return its result.

        Raises:
            BusyError: if the queue is full.
        """
        if self._jobs >= self._max_jobs:
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
        pictures: pictures that hits should be similar to, `(C, H, W)` uint8.
        unlike_pictures: pictures that hits should not be similar to.
        predictions: classes of `pictures`, then of `unlike_pictures`.
        milliseconds: duration of each stage.
    """

    hits: tuple[Hit, ...]
    matching: int
    pictures: tuple[Tensor, ...]
    unlike_pictures: tuple[Tensor, ...]
    predictions: tuple[Prediction, ...]
    milliseconds: dict[str, float]


def search_catalogue(
    view: CatalogueView, query: SearchQuery, *, top_k: int, files: Files | None = None, max_pixels: int = 0
) -> SearchResult:
    """Search a version of the catalogue.

    Args:
        view: the version.
        query: the parameters.
        top_k: number of products per page.
        files: contents of picture files in the fields `picture` and `unlike_picture`, beside the query's pictures.
        max_pixels: maximum size of a decoded file.

    Raises:
        HTTPError: if a product does not exist, a picture cannot be read, or a filter is invalid.
    """
    milliseconds: dict[str, float] = {}
    decoding, embedding, searching, describing = STAGES
    view.require([*query.like, *query.unlike])
    preparation = view.searcher.network.preparation
    with timed(milliseconds, decoding):
        pictures, unlike_pictures = (
            tuple(decode_picture(text, preparation.image_shape) for text in getattr(query, name))
            + prepare_files((files or {}).get(name, ()), preparation, max_pixels)
            for name in ("picture", "unlike_picture")
        )
    searcher_query = Query(
        pictures=pictures,
        unlike_pictures=unlike_pictures,
        like=tuple(query.like),
        unlike=tuple(query.unlike),
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
            class_outputs = outputs if same else network.outputs(torch.stack([*pictures, *unlike_pictures]))
            predictions = tuple(view.predictor.classify(class_outputs, [Path()] * len(class_outputs.logits)))
    with timed(milliseconds, searching):
        try:
            ranking = view.searcher.rank(searcher_query, outputs)
        except UserError as error:
            raise HTTPError(422, str(error)) from error
    with timed(milliseconds, describing):
        hits = view.searcher.fetch(ranking).hits
    if outputs is None:  # without pictures these stages did not take place
        del milliseconds[decoding], milliseconds[embedding]
    return SearchResult(hits, ranking.matching, pictures, unlike_pictures, predictions, milliseconds)


def prepare_files(files: Sequence[bytes], preparation: Preparation, max_pixels: int) -> tuple[Tensor, ...]:
    """Decode picture files and prepare them for the network.

    Returns:
        Pictures `(C, H, W)` uint8.

    Raises:
        HTTPError: if a file cannot be used; the message names which one.
    """
    count = len(files)
    names = ["The picture"] if count == 1 else [f"Picture {number} of {count}" for number in range(1, count + 1)]
    return tuple(_prepare(*each, preparation, max_pixels) for each in zip(names, files, strict=True))


def _prepare(name: str, content: bytes, preparation: Preparation, max_pixels: int) -> Tensor:
    try:
        return preparation(decode(content, min_pixels=preparation.min_pixels, max_pixels=max_pixels))
    except TooManyPixelsError as error:
        raise HTTPError(413, f"{name} {error}.") from error
    except UnreadablePictureError as error:
        raise HTTPError(415, f"{name} {error}.") from error
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        raise HTTPError(415, f"{name} cannot be read: save it as a JPEG or PNG file.") from error


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes:
        upload_mb: maximum size of the pictures of one request, in MB.
        pixels_million: maximum size of a decoded picture, in millions of pixels.
        seconds: maximum time for a request to arrive.
        threads: number of searches at once.
        waiting: number of further searches that may wait.
        memory_mb: maximum size of all uploads at once, in MB.
    """

    upload_mb: float = 10
    pixels_million: float = 16
    seconds: float = 20
    threads: int = 2
    waiting: int = 64
    memory_mb: float = 64

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
        workers: threads for everything that takes time.
        uploads: reads picture files.
        latencies: durations of recent searches.
    """

    state: CatalogueState
    limits: Limits
    test_samples: tuple[Sample, ...]
    top_k: int = 12
    workers: Workers = field(init=False)
    uploads: Uploads = field(init=False)
    latencies: Latencies = field(init=False, default_factory=Latencies)

    def __post_init__(self) -> None:
        limits = self.limits
        self.workers = Workers(threads=limits.threads, waiting=limits.waiting)
        self.uploads = Uploads(
            max_bytes=int(limits.upload_mb * 1e6), memory=int(limits.memory_mb * 1e6), timeout=limits.seconds
        )

    async def search(
        self, view: CatalogueView, query: SearchQuery, files: Files | None = None, top_k: int | None = None
    ) -> SearchResult:
        """Run `search_catalogue` in a worker thread and record its latency.

        Raises:
            HTTPError: as `search_catalogue` does, or a `BusyError`.
        """
        result = await self.workers.run(
            lambda: search_catalogue(view, query, top_k=top_k or self.top_k, files=files, max_pixels=self.limits.pixels)
        )
        # Listing the whole catalogue is not a search.
        if files or not query.is_empty:
            self.latencies.add(result.milliseconds)
        return result

    async def samples(self, view: CatalogueView) -> tuple[Sample, ...]:
        """Sample searches: images of the test set, otherwise products.

        Raises:
            BusyError: if the queue is full.
        """
        return self.test_samples or await self.workers.run(lambda: view.samples)
