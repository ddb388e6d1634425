"""The JSON API: the same searches as on the pages, for programs. Its description has the docstrings of the routes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import TypeAdapter

from fashion_cnn.errors import did_you_mean
from fashion_cnn.retrieval.output import as_record
from fashion_cnn.retrieval.searcher import Hit
from fashion_cnn.retrieval.web.access import client_of
from fashion_cnn.retrieval.web.errors import HTTPError, ReadOnlyError, describe_invalid
from fashion_cnn.retrieval.web.openapi import (
    BatchResponse,
    ItemsResponse,
    ProductChange,
    ProductRecord,
    SearchResponse,
    StatusResponse,
    batch_form,
    error_responses,
    picture_form,
    product_form,
    upload_form,
)
from fashion_cnn.retrieval.web.query import (
    MAX_LINK_LENGTH,
    MAX_PICTURES,
    MAX_QUERIES,
    SearchQuery,
    as_texts,
    encode_picture,
    parse_boxes,
    validate,
)
from fashion_cnn.retrieval.web.service import Files, SearchResult, SearchService
from fashion_cnn.retrieval.web.state import CatalogueView
from fashion_cnn.retrieval.web.uploads import Form
from fashion_cnn.retrieval.web.views import media_type
from fashion_cnn.runs import replace_non_finite

Id = Annotated[str, Query(max_length=1000, description="Id of the product")]
ChangedId = Annotated[str, PathParameter(min_length=1, max_length=1000, description="Id of the product")]
TopK = Annotated[int, Query(ge=1, le=100, description="Number of products per page")]
_TOP_K = TypeAdapter(TopK)
_PARAMETERS = (*SearchQuery.model_fields, "top_k")
_FORM_FIELDS = (*_PARAMETERS, "box")
_FILES = ("picture", "unlike_picture")


class LenientJSONResponse(JSONResponse):
    """JSON of a catalogue's values: dates become text, NaN and infinity null, and invalid Unicode is replaced."""

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return json.dumps(replace_non_finite(content), ensure_ascii=False, default=str).encode(errors="replace")


def search_router(service: SearchService) -> APIRouter:
    """Create the routes of searches, and of the items in a picture file."""
    router = APIRouter(prefix="/api", default_response_class=LenientJSONResponse)

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
        result = await service.search(view, query, top_k=top_k)
        return LenientJSONResponse(_content(view, query, result, query.link()))

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
            return LenientJSONResponse(await _search_with_files(service, view, form.fields, form.files))

    @router.post(
        "/search/batch",
        summary="Several searches in one request",
        response_model=BatchResponse,
        responses=error_responses(400, 403, 413, 415, 422, 503),
        openapi_extra={"requestBody": batch_form()},
    )
    async def search_batch(request: Request) -> Response:
        """A multipart form with the queries as JSON and the picture files that they name.

        Each query has an answer of its own; an error in one leaves the others alone.
        """
        view = service.state.require_view()
        if request.query_params:
            raise HTTPError(422, "Send all parameters in the field queries of the form, none in the address.")
        client = client_of(request.scope)
        answers: list[dict[str, Any]] = []
        async with service.uploads.read(request, searches=MAX_QUERIES) as form:
            for number, query in enumerate(_queries(form)):
                try:
                    if number:
                        client.count_request()
                    result = await _search_with_files(service, view, *_parts_of_query(query, form.files))
                    answers.append({"status": 200, "error": None, "result": result})
                except HTTPError as error:
                    answers.append({"status": error.status_code, "error": error.detail, "result": None})
                except RequestValidationError as error:
                    answers.append({"status": 422, "error": describe_invalid(error), "result": None})
            return LenientJSONResponse({"answers": answers})

    @router.post(
        "/items",
        summary="Find several items in a picture file",
        response_model=ItemsResponse,
        responses=error_responses(400, 403, 408, 413, 415, 422, 503),
        openapi_extra={"requestBody": picture_form()},
    )
    async def items(request: Request) -> Response:
        """The separate parts of a photograph on a plain background, the largest first, to search each with its box.

        Empty if there is only one, if none stands out from the background, and for catalogues of other networks than
        those of photographs.
        """
        view = service.state.require_view()
        async with service.uploads.read(request) as form:
            return LenientJSONResponse(await service.find_items(view, form.only_picture()))

    return router


def product_router(service: SearchService) -> APIRouter:
    """Create the routes that read, change and remove a product."""
    router = APIRouter(prefix="/api", default_response_class=LenientJSONResponse)

    async def find(product_id: str) -> Hit:
        view = service.state.require_view()
        (hit,) = await service.workers.run(lambda: view.products([product_id]))
        return hit

    def view_to_change(request: Request) -> CatalogueView:
        if not (service.is_writable and client_of(request.scope).may_write):
            raise ReadOnlyError(is_writable=service.is_writable)
        if request.query_params:
            raise HTTPError(422, "Send the columns as fields of a form or as JSON, none in the address.")
        return service.state.require_view()

    @router.get(
        "/product",
        summary="Get a product with all its columns",
        response_model=ProductRecord,
        responses=error_responses(404, 422, 503),
    )
    async def product(id: Id) -> Response:
        return LenientJSONResponse(_record(await find(id)))

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
        hit = await find(id)
        return Response(hit.thumbnail, media_type=media_type(hit.thumbnail))

    @router.put(
        "/products/{product_id:path}",
        summary="Add or change a product",
        response_model=ProductChange,
        responses={201: {"model": ProductChange}, **error_responses(400, 403, 408, 413, 415, 422, 503)},
        openapi_extra={"requestBody": product_form()},
    )
    async def put_product(request: Request, product_id: ChangedId) -> Response:
        """A form with its picture and columns, or a JSON object with columns of a product that has a picture.

        Columns that are not sent keep their values, and empty ones are cleared. Needs a server with `writable=true`
        and an API key that may write.
        """
        view = view_to_change(request)
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type == "application/json":
            async with service.uploads.read_json(request) as values:
                created, version = await service.put(view, product_id, values)
        else:
            async with service.uploads.read(request) as form:
                _check_names(form.files, known=("picture",))
                if len(pictures := form.files.get("picture", [])) > 1:
                    raise HTTPError(422, "Send one picture: a product has only one.")
                fields = {name: texts[-1] for name, texts in form.fields.items()}
                created, version = await service.put(view, product_id, fields, *pictures)
        change = {"id": product_id, "version": version, "created": created}
        return LenientJSONResponse(change, 201 if created else 200)

    @router.delete(
        "/products/{product_id:path}",
        summary="Remove a product",
        response_model=ProductChange,
        responses=error_responses(403, 404, 422, 503),
    )
    async def remove_product(request: Request, product_id: ChangedId) -> Response:
        """Needs a server with `writable=true` and an API key that may write."""
        view_to_change(request)
        version = await service.remove(product_id)
        return LenientJSONResponse({"id": product_id, "version": version, "created": False})

    return router


def status_router(service: SearchService, *, developer: bool) -> APIRouter:
    """Create the route of the status.

    Args:
        service: the search service.
        developer: whether it has the reason of a problem, which may name folders of the server.
    """
    router = APIRouter(prefix="/api", default_response_class=LenientJSONResponse)

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
                "problem": state.problem if developer else state.describe_problem(with_reason=False),
                "probabilities_calibrated": state.calibrated,
                "confidence_calibrated": snapshot and snapshot.metadata.temperature is not None,
                "milliseconds": {
                    each.stage: {"searches": each.count, "p50": round(each.p50, 2), "p95": round(each.p95, 2)}
                    for each in service.latencies.percentiles()
                },
            }
        )

    return router


async def _search_with_files(
    service: SearchService, view: CatalogueView, fields: dict[str, list[str]], files: Files
) -> dict[str, Any]:
    """Search with the fields and files of a form, whose names are known to be right."""
    top_k = fields.pop("top_k", None)
    boxes = parse_boxes(fields.pop("box", []), len(files.get("picture", ())))
    query = SearchQuery.from_form(fields)
    for name in _FILES:
        if len(getattr(query, name)) + len(files.get(name, ())) > MAX_PICTURES:
            raise HTTPError(422, f"Too many pictures: the maximum is {MAX_PICTURES}.")
    size = validate(_TOP_K, top_k[-1], "top_k") if top_k else None
    result = await service.search(view, query, files, boxes, top_k=size)
    link = await service.workers.run(partial(_link, query, result), is_accepted=True)
    return _content(view, query, result, link)


def _check_names(names: Iterable[str], *, known: Sequence[str]) -> None:
    """Refuse unknown parameters: with a misspelt filter, all products would match."""
    for name in names:
        if name not in known:
            raise HTTPError(422, f"Unknown parameter {name}.{did_you_mean(name, known)}")


def _queries(form: Form) -> list[Any]:
    """Return the queries of a form.

    Raises:
        HTTPError: if it does not hold a list of them, or a file that none of them names.
    """
    texts = form.fields.pop("queries", [])
    _check_names(form.fields, known=("queries",))
    try:
        queries = json.loads(texts[0]) if len(texts) == 1 else None
    except (ValueError, RecursionError):
        queries = None
    if not isinstance(queries, list) or not 1 <= len(queries) <= MAX_QUERIES:
        raise HTTPError(422, f"Send a field queries with a JSON array of 1 to {MAX_QUERIES} objects.")
    named = {name for query in queries if isinstance(query, dict) for name in _file_names(query)}
    for name in form.files:
        if name not in named:
            raise HTTPError(422, f"No query names the file {name}: give its field in picture_file.")
    return queries


def _file_names(query: dict[str, Any]) -> list[str]:
    """Return the names of the fields with the files of a query."""
    values = [query.get(f"{option}_file") for option in _FILES]
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return [name for name in names if isinstance(name, str)]


def _parts_of_query(query: Any, files: Files) -> tuple[dict[str, list[str]], Files]:
    """Return the fields and files of one query of several.

    Raises:
        HTTPError: if it is no object, has an unknown parameter, or names a file that is not in the form.
    """
    if not isinstance(query, dict):
        raise HTTPError(422, "A query is a JSON object with the parameters of a search.")
    names = {option: f"{option}_file" for option in _FILES}
    _check_names(query, known=(*_FORM_FIELDS, *names.values()))
    chosen: dict[str, list[bytes]] = {}
    for option, name in names.items():
        for field in as_texts(name, query.get(name) or []):
            if field not in files:
                raise HTTPError(422, f"{name}={field:.100}: the form has no such file.")
            chosen.setdefault(option, []).extend(files[field])
    fields = {
        name: as_texts(name, value)
        for name, value in query.items()
        if name not in names.values() and value not in (None, [])
    }
    return fields, chosen


def _content(view: CatalogueView, query: SearchQuery, result: SearchResult, link: str | None) -> dict[str, Any]:
    return {
        "version": view.snapshot.version,
        "matching": result.matching,
        "with_all_words": result.with_all_words,
        "words": (result.colours.words if result.colours else query.text) or None,
        "colours": result.colours.values if result.colours else [],
        "page": query.page,
        "link": link,
        "pictures": [
            {
                "answer": prediction.label,
                "classes": [
                    {"class": name, "probability": round(probability, 6)} for name, probability in prediction.classes
                ],
                "taught": [{"concept": name, "score": round(score, 3)} for name, score in prediction.concepts],
                "item_found": found,
            }
            for prediction, found in zip(result.predictions, result.items_found, strict=True)
        ],
        "hits": [_record(hit) for hit in result.hits],
        "milliseconds": {stage: round(value, 2) for stage, value in result.milliseconds.items()},
    }


def _link(query: SearchQuery, result: SearchResult) -> str | None:
    """Return the link to the page with the same results; None if the pictures are too large for an address."""
    try:
        pictures = [encode_picture(picture) for picture in result.pictures]
        unlike_pictures = [encode_picture(picture) for picture in result.unlike_pictures]
    except HTTPError:
        return None
    link = query.model_copy(update={"picture": pictures, "unlike_picture": unlike_pictures}).link()
    return link if len(link) <= MAX_LINK_LENGTH else None


def _record(hit: Hit) -> dict[str, Any]:
    return as_record(hit) | {"thumbnail": f"/api/thumbnail?{urlencode({'id': hit.id})}"}
