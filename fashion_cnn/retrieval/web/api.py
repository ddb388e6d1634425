"""The JSON API: what the pages do, for programs."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import TypeAdapter

from fashion_cnn.errors import did_you_mean
from fashion_cnn.retrieval.output import as_record
from fashion_cnn.retrieval.searcher import Hit
from fashion_cnn.retrieval.web.errors import Refused, no_product
from fashion_cnn.retrieval.web.query import MOST_LINK, MOST_PICTURES, Asked, carried
from fashion_cnn.retrieval.web.service import Answered, Desk, asked_of, validated
from fashion_cnn.retrieval.web.state import Storefront
from fashion_cnn.retrieval.web.views import kind

Id = Annotated[str, Query(max_length=1000, description="The id of a product")]
TopK = Annotated[int, Query(ge=1, le=100, description="How many products a page")]
_TOP_K = TypeAdapter(TopK)
_FILES = ("picture", "unlike_picture")
_ERROR = {"content": {"application/json": {"example": {"error": "What was wrong.", "status": 422}}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"description": "A value that cannot be", **_ERROR},
    503: {"description": "No catalogue yet, or too much at once: see Retry-After", **_ERROR},
}
_NOT_THERE: dict[int | str, dict[str, Any]] = {404: {"description": "No such product", **_ERROR}}


class Json(JSONResponse):
    """A shop's columns hold dates, too, and numbers that JSON has not."""

    def render(self, content: Any) -> bytes:
        # What a client sent may be repeated to it, and may be no text.
        return json.dumps(_finite(content), ensure_ascii=False, default=str).encode(errors="replace")


def api(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/api", default_response_class=Json)

    @router.get("/search", summary="Search by products, words and filters", responses=_NOT_THERE | _ERRORS)
    async def search(request: Request, asked: Annotated[Asked, Query()], top_k: TopK = desk.top_k) -> Response:
        """Without anything asked for, the catalogue from its start."""
        _refuse_unknown(request.query_params, known=[*Asked.model_fields, "top_k"])
        front = desk.shop.open()
        return _results(front, asked, await desk.answer(front, asked, top_k=top_k), asked.link())

    @router.post(
        "/search",
        summary="Search by picture files",
        responses={
            400: {"description": "The form cannot be read", **_ERROR},
            413: {"description": "Too many bytes or pixels", **_ERROR},
            415: {"description": "No form, or no picture", **_ERROR},
            **_NOT_THERE,
            **_ERRORS,
        },
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _form()}}}},
    )
    async def search_pictures(request: Request) -> Response:
        """A form: picture files beside the fields of the search above. The answer's link shows it as a page."""
        front = desk.shop.open()
        if request.query_params:
            raise Refused(422, "Send all of the search as fields of the form: the address has none beside it.")
        async with desk.uploads.read(request) as form:
            _refuse_unknown(form.fields, known=[*Asked.model_fields, "top_k"])
            _refuse_unknown(form.files, known=_FILES)
            top_k = form.fields.pop("top_k", None)
            asked = asked_of(form)
            for name in _FILES:
                if len(getattr(asked, name)) + len(form.files.get(name, ())) > MOST_PICTURES:
                    raise Refused(422, f"Too many pictures: {MOST_PICTURES} are the most at once.")
            most = validated(_TOP_K, top_k[-1]) if top_k else None
            answered = await desk.answer(front, asked, form, top_k=most)
            link = await desk.workers.run(partial(_link, asked, answered))
            return _results(front, asked, answered, link)

    @router.get("/product", summary="All that is known of a product", responses=_NOT_THERE | _ERRORS)
    async def product(id: Id) -> Response:
        front = desk.shop.open()
        return Json(_record(await desk.workers.run(lambda: _named(front, id))))

    @router.get(
        "/thumbnail",
        summary="The picture of a product",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}, "image/png": {}, "image/webp": {}}}, **_NOT_THERE, **_ERRORS},
    )
    async def thumbnail(id: Id) -> Response:
        front = desk.shop.open()
        content = (await desk.workers.run(lambda: _named(front, id))).thumbnail
        return Response(content, media_type=kind(content))

    @router.get("/status", summary="What is searched, and how long it takes")
    async def status() -> Response:
        shop, front = desk.shop, desk.shop.storefront
        return Json(
            {
                "run": str(shop.run.path),
                "catalogue": shop.catalogue.uri,
                "version": front and front.snapshot.version,
                "products": front and len(front.snapshot),
                "class_weight": front and front.snapshot.metadata.class_weight,
                "approximate": front and front.snapshot.vector_index and asdict(front.snapshot.vector_index),
                "problem": shop.problem,
                "probabilities_calibrated": shop.calibrated,
                "milliseconds": {
                    one.stage: {"searches": one.count, "p50": round(one.p50, 2), "p95": round(one.p95, 2)}
                    for one in shop.latencies.percentiles()
                },
            }
        )

    return router


def _refuse_unknown(names: Iterable[str], *, known: Sequence[str]) -> None:
    """A misspelt filter would give the whole catalogue. Raises Refused."""
    for name in names:
        if name not in known:
            raise Refused(422, f"No parameter is called {name}.{did_you_mean(name, known)}")


def _named(front: Storefront, one: str) -> Hit:
    if one not in front.snapshot.row_by_id:
        raise no_product(one)
    return front.searcher.fetch_by_id([one])[0]


def _results(front: Storefront, asked: Asked, answered: Answered, link: str | None) -> Response:
    return Json(
        {
            "version": front.snapshot.version,
            "matching": answered.found.matching,
            "page": asked.page,
            "link": link,
            "pictures": [
                {
                    "said": said.said,
                    "classes": [{"class": name, "probability": round(share, 6)} for name, share in said.classes],
                    "taught": [{"concept": name, "score": round(score, 3)} for name, score in said.taught],
                }
                for said in answered.said
            ],
            "hits": [_record(hit) for hit in answered.found.hits],
            "milliseconds": {stage: round(value, 2) for stage, value in answered.watch.milliseconds.items()},
        }
    )


def _link(asked: Asked, answered: Answered) -> str | None:
    """The page that shows the same; None where its pictures are too large for an address."""
    try:
        pictures, others = ([carried(one) for one in those] for those in (answered.pictures, answered.unlike_pictures))
    except Refused:
        return None
    link = asked.model_copy(update={"picture": pictures, "unlike_picture": others}).link()
    return link if len(link) <= MOST_LINK else None


def _record(hit: Hit) -> dict[str, Any]:
    return as_record(hit) | {"thumbnail": f"/api/thumbnail?{urlencode({'id': hit.id})}"}


def _form() -> dict[str, Any]:
    """The schema of the form: the fields of a search, where pictures are files."""
    schema = Asked.model_json_schema()
    file = {"type": "array", "maxItems": MOST_PICTURES, "items": {"type": "string", "format": "binary"}}
    files = {
        "picture": file | {"description": "Pictures to be like"},
        "unlike_picture": file | {"description": "Pictures not to be like"},
    }
    return {"type": "object", "properties": schema["properties"] | {"top_k": _TOP_K.json_schema()} | files}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
