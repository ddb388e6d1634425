"""The search service behind pages and API: from a query to its results, in a few threads with a short queue."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import torch
from anyio.to_thread import run_sync
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.inference.predictor import Answer
from fashion_cnn.pictures import Preparation, TooManyPixelsError, UnreadablePictureError, decode
from fashion_cnn.retrieval.searcher import Query, SearchHits
from fashion_cnn.retrieval.web.errors import Busy, Refused, no_product
from fashion_cnn.retrieval.web.query import Asked, uncarried
from fashion_cnn.retrieval.web.state import STAGES, Shop, Stopwatch, Storefront
from fashion_cnn.retrieval.web.uploads import Form, Uploads
from fashion_cnn.retrieval.web.views import Sample

Result = TypeVar("Result")
Kind = TypeVar("Kind")


class Workers:
    """threads: so many pieces of work at once. waiting: so many more may wait; beyond them it is Busy at once, so that
    a crowd gets a quick refusal, where a long queue would make everyone wait for answers that nobody reads any more.
    """

    def __init__(self, *, threads: int, waiting: int) -> None:
        self._limiter = anyio.CapacityLimiter(threads)
        self._most = threads + waiting
        self._in_hand = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, in a thread. Raises Busy."""
        if self._in_hand >= self._most:
            raise Busy
        self._in_hand += 1
        try:
            return await run_sync(work, limiter=self._limiter)
        finally:
            self._in_hand -= 1


@dataclass(frozen=True)
class Answered:
    """found: this page's products. pictures, unlike_pictures: to be like and not to be like, `(C, H, W)` uint8. said:
    what the network says of each of the former, then of the latter. watch: the time of each stage.
    """

    found: SearchHits
    pictures: tuple[Tensor, ...]
    unlike_pictures: tuple[Tensor, ...]
    said: tuple[Answer, ...]
    watch: Stopwatch


def answer(
    front: Storefront,
    asked: Asked,
    *,
    top_k: int,
    uploaded: Sequence[bytes] = (),
    other_uploaded: Sequence[bytes] = (),
    most_pixels: int = 0,
) -> Answered:
    """Search. uploaded, other_uploaded: picture files beside those of the link. Raises Refused."""
    watch = Stopwatch()
    decoding, embedding, searching, describing = STAGES
    preparation = front.searcher.network.preparation
    for one in (*asked.like, *asked.unlike):
        if one not in front.snapshot.row_by_id:
            raise no_product(one)
    with watch.measuring(decoding):
        pictures, others = (
            tuple(uncarried(text, preparation.image_shape) for text in texts)
            + prepared(files, preparation, most_pixels)
            for texts, files in ((asked.picture, uploaded), (asked.unlike_picture, other_uploaded))
        )
    query = Query(
        pictures=pictures,
        unlike_pictures=others,
        like=tuple(asked.like),
        unlike=tuple(asked.unlike),
        text=asked.text,
        conditions=asked.conditions(front.snapshot.attributes.schema),
        top_k=top_k,
        offset=(asked.page - 1) * top_k,
    )
    with watch.measuring(embedding):
        seen = front.searcher.embed(query)
        said: tuple[Answer, ...] = ()
        if seen is not None:
            says = front.predictor.network
            known = seen if says is front.searcher.network else says.outputs(torch.stack([*pictures, *others]))
            said = tuple(front.predictor.said(known, [Path()] * len(known.logits)))
    with watch.measuring(searching):
        try:
            ranked = front.searcher.rank(query, seen)
        except UserError as error:
            raise Refused(422, str(error)) from error
    with watch.measuring(describing):
        found = front.searcher.fetch(ranked)
    if seen is None:  # these stages were none
        del watch.milliseconds[decoding], watch.milliseconds[embedding]
    return Answered(found, pictures, others, said, watch)


def prepared(files: Sequence[bytes], preparation: Preparation, most_pixels: int) -> tuple[Tensor, ...]:
    """The pictures of files `(C, H, W)` uint8 as the network takes them. Raises Refused, naming which."""
    count = len(files)
    names = ["The picture"] if count == 1 else [f"Picture {place} of {count}" for place in range(1, count + 1)]
    return tuple(_prepared(*each, preparation, most_pixels) for each in zip(names, files, strict=True))


def _prepared(name: str, content: bytes, preparation: Preparation, most_pixels: int) -> Tensor:
    try:
        return preparation(decode(content, min_pixels=preparation.min_pixels, max_pixels=most_pixels))
    except TooManyPixelsError as error:
        raise Refused(413, f"{name} {error}.") from error
    except UnreadablePictureError as error:
        raise Refused(415, f"{name} {error}.") from error
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        raise Refused(415, f"{name} cannot be used: save it as a JPEG or PNG file.") from error


@dataclass(frozen=True)
class Limits:
    """upload_mb: of the pictures of one request. memory_mb: of all uploads at once. pixels_million: of one picture, as
    it is unpacked. seconds: for a request to arrive. threads: searches at once. waiting: so many more may wait.
    """

    upload_mb: float = 10
    pixels_million: float = 16
    seconds: float = 20
    threads: int = 2
    waiting: int = 64
    memory_mb: float = 64

    @property
    def pixels(self) -> int:
        return int(self.pixels_million * 1e6)

    @property
    def upload_bytes(self) -> int:
        return int(self.upload_mb * 1e6)


@dataclass
class Desk:
    """test_samples: of the run's test set, if it is here. top_k: products a page."""

    shop: Shop
    limits: Limits
    test_samples: tuple[Sample, ...]
    top_k: int = 12
    workers: Workers = field(init=False)
    uploads: Uploads = field(init=False)

    def __post_init__(self) -> None:
        self.workers = Workers(threads=self.limits.threads, waiting=self.limits.waiting)
        self.uploads = Uploads(
            most_bytes=self.limits.upload_bytes,
            in_memory=int(self.limits.memory_mb * 1e6),
            seconds=self.limits.seconds,
        )

    async def answer(
        self, front: Storefront, asked: Asked, form: Form | None = None, top_k: int | None = None
    ) -> Answered:
        """Search, in a thread, and note the time. form: with further pictures. Raises Refused."""
        files = {} if form is None else form.files
        answered = await self.workers.run(
            lambda: answer(
                front,
                asked,
                top_k=top_k or self.top_k,
                uploaded=files.get("picture", ()),
                other_uploaded=files.get("unlike_picture", ()),
                most_pixels=self.limits.pixels,
            )
        )
        # The catalogue from its start is no search.
        if asked.anything or files:
            self.shop.latencies.add(answered.watch)
        return answered

    async def samples(self, front: Storefront) -> tuple[Sample, ...]:
        """Those of the test set, or else products. Raises Busy."""
        return self.test_samples or await self.workers.run(lambda: front.samples)


def asked_of(form: Form) -> Asked:
    """The search that a form's texts ask for. Raises RequestValidationError, as for a link."""
    several = {name for name, about in Asked.model_fields.items() if about.get_default() == []}
    given = {name: texts if name in several else texts[-1] for name, texts in form.fields.items()}
    return validated(TypeAdapter(Asked), given)


def validated(kind: TypeAdapter[Kind], given: Any) -> Kind:
    """What was given as the kind that it should be. Raises RequestValidationError."""
    try:
        return kind.validate_python(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
