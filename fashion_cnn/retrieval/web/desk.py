"""Where pages and API have their searches done."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from fashion_cnn.retrieval.web.answering import Answered, answer
from fashion_cnn.retrieval.web.asked import Asked
from fashion_cnn.retrieval.web.samples import Sample
from fashion_cnn.retrieval.web.shop import Shop
from fashion_cnn.retrieval.web.storefront import Storefront
from fashion_cnn.retrieval.web.uploads import Form, Uploads
from fashion_cnn.retrieval.web.workers import Workers

Kind = TypeVar("Kind")


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
