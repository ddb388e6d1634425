"""The JSON API: the same searches as on the pages, for programs."""

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
from fashion_cnn.retrieval.web.errors import HTTPError
from fashion_cnn.retrieval.web.openapi import (
    ProductRecord,
    SearchResponse,
    StatusResponse,
    error_responses,
    upload_form,
)
from fashion_cnn.retrieval.web.query import (
    MAX_LINK_LENGTH,
    MAX_PICTURES,
    SearchQuery,
    encode_picture,
    parse_boxes,
    validate,
)
from fashion_cnn.retrieval.web.service import SearchResult, SearchService
from fashion_cnn.retrieval.web.state import CatalogueView
from fashion_cnn.retrieval.web.views import media_type

Id = Annotated[str, Query(max_length=1000, description="Id of the product")]
TopK = Annotated[int, Query(ge=1, le=100, description="Number of products per page")]
_TOP_K = TypeAdapter(TopK)
_PARAMETERS = (*SearchQuery.model_fields, "top_k")
_FORM_FIELDS = (*_PARAMETERS, "box")
_FILES = ("picture", "unlike_picture")


class LenientJSONResponse(JSONResponse):
    """JSON of a catalogue's values: dates become text, NaN and infinity null, and invalid Unicode is replaced."""

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return json.dumps(_finite(content), ensure_ascii=False, default=str).encode(errors="replace")


def create_router(service: SearchService) -> APIRouter:
    """Create the routes below `/api`. Their docstrings are part of the API description."""
    router = APIRouter(prefix="/api", default_response_class=LenientJSONResponse)
    in_thread = service.workers.run

    @router.get(
        "/search",
        summary="Search by products, words and filters",
        response_model=SearchResponse,
        responses=error_responses(404, 422, 503),
    )
    async def search(request: Request, query: Annotated[SearchQuery, Query()], top_k: TopK = service.top_k) -> Response:
        """Without parameters it lists all products."""
        if "box" in request.query_params:
            raise HTTPError(422, "box is a part of a picture file: send both as a form, with POST.")
        _check_names(request.query_params, known=_PARAMETERS)
        view = service.state.require_view()
        return _response(view, query, await service.search(view, query, top_k=top_k), query.link())

    @router.post(
        "/search",
        summary="Search by picture files",
        response_model=SearchResponse,
        responses=error_responses(400, 403, 404, 413, 415, 422, 503),
        openapi_extra={"requestBody": upload_form(_TOP_K.json_schema())},
    )
    async def search_pictures(request: Request) -> Response:
        """A multipart form with picture files and the parameters of GET. The link opens the results as a page."""
        view = service.state.require_view()
        if request.query_params:
            raise HTTPError(422, "Send all parameters as fields of the form, none in the address.")
        async with service.uploads.read(request) as form:
            _check_names(form.fields, known=_FORM_FIELDS)
            _check_names(form.files, known=_FILES)
            top_k = form.fields.pop("top_k", None)
            boxes = parse_boxes(form.fields.pop("box", []), len(form.files.get("picture", ())))
            query = SearchQuery.from_form(form.fields)
            for name in _FILES:
                if len(getattr(query, name)) + len(form.files.get(name, ())) > MAX_PICTURES:
                    raise HTTPError(422, f"Too many pictures: the maximum is {MAX_PICTURES}.")
            size = validate(_TOP_K, top_k[-1], "top_k") if top_k else None
            result = await service.search(view, query, form.files, boxes, top_k=size)
            return _response(view, query, result, await in_thread(partial(_link, query, result)))

    @router.get(
        "/product",
        summary="Get a product with all its columns",
        response_model=ProductRecord,
        responses=error_responses(404, 422, 503),
    )
    async def product(id: Id) -> Response:
        view = service.state.require_view()
        (hit,) = await in_thread(lambda: view.products([id]))
        return LenientJSONResponse(_record(hit))

    @router.get(
        "/thumbnail",
        summary="Get the picture of a product",
        response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {}, "image/png": {}, "image/webp": {}}},
            **error_responses(404, 422, 503),
        },
    )
    async def thumbnail(id: Id) -> Response:
        view = service.state.require_view()
        (hit,) = await in_thread(lambda: view.products([id]))
        return Response(hit.thumbnail, media_type=media_type(hit.thumbnail))

    @router.get(
        "/status",
        summary="Get the catalogue's version and size, and search latencies",
        response_model=StatusResponse,
        responses=error_responses(),
    )
    async def status() -> Response:
        state = service.state
        snapshot = state.view and state.view.snapshot
        return LenientJSONResponse(
            {
                "run": state.run.path.name,
                "version": snapshot and snapshot.version,
                "products": snapshot and len(snapshot),
                "class_weight": snapshot and snapshot.metadata.class_weight,
                "approximate": snapshot and snapshot.vector_index and asdict(snapshot.vector_index),
                "problem": state.problem,
                "probabilities_calibrated": state.calibrated,
                "confidence_calibrated": snapshot and snapshot.metadata.temperature is not None,
                "milliseconds": {
                    each.stage: {"searches": each.count, "p50": round(each.p50, 2), "p95": round(each.p95, 2)}
                    for each in service.latencies.percentiles()
                },
            }
        )

    return router


def _check_names(names: Iterable[str], *, known: Sequence[str]) -> None:
    """Refuse unknown parameters: with a misspelt filter, all products would match."""
    for name in names:
        if name not in known:
            raise HTTPError(422, f"Unknown parameter {name}.{did_you_mean(name, known)}")


def _response(view: CatalogueView, query: SearchQuery, result: SearchResult, link: str | None) -> Response:
    return LenientJSONResponse(
        {
            "version": view.snapshot.version,
            "matching": result.matching,
            "with_all_words": result.with_all_words,
            "page": query.page,
            "link": link,
            "pictures": [
                {
                    "said": prediction.label,
                    "classes": [
                        {"class": name, "probability": round(probability, 6)}
                        for name, probability in prediction.classes
                    ],
                    "taught": [{"concept": name, "score": round(score, 3)} for name, score in prediction.concepts],
                    "item_found": found,
                }
                for prediction, found in zip(result.predictions, result.items_found, strict=True)
            ],
            "hits": [_record(hit) for hit in result.hits],
            "milliseconds": {stage: round(value, 2) for stage, value in result.milliseconds.items()},
        }
    )


def _link(query: SearchQuery, result: SearchResult) -> str | None:
    """The page with the same results; None if the pictures are too large for an address."""
    try:
        pictures = [encode_picture(picture) for picture in result.pictures]
        unlike_pictures = [encode_picture(picture) for picture in result.unlike_pictures]
    except HTTPError:
        return None
    link = query.model_copy(update={"picture": pictures, "unlike_picture": unlike_pictures}).link()
    return link if len(link) <= MAX_LINK_LENGTH else None


def _record(hit: Hit) -> dict[str, Any]:
    return as_record(hit) | {"thumbnail": f"/api/thumbnail?{urlencode({'id': hit.id})}"}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
