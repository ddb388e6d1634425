"""The HTML pages: search and results, product, developer page and API description."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates

from fashion_cnn.errors import as_typed
from fashion_cnn.inference.prediction import Prediction
from fashion_cnn.retrieval.products import encode_png, to_pil_image
from fashion_cnn.retrieval.web.developer import evaluation_tables, histogram
from fashion_cnn.retrieval.web.errors import HTTPError
from fashion_cnn.retrieval.web.openapi import operations
from fashion_cnn.retrieval.web.query import (
    MAX_PAGES,
    MAX_PICTURES,
    SearchQuery,
    encode_picture,
    format_number,
    parse_boxes,
)
from fashion_cnn.retrieval.web.service import SearchResult, SearchService
from fashion_cnn.retrieval.web.state import CatalogueState, Filter
from fashion_cnn.retrieval.web.views import format_attribute, format_price, inline_image

UPDATE_NOTICE_SECONDS = 60
_SIMILAR_PRODUCTS = 12
QueryParameters = Annotated[SearchQuery, Query()]
Id = Annotated[str, Query(max_length=1000)]


@dataclass(frozen=True)
class Display:
    """Settings of what pages show.

    Attributes:
        developer: whether there is the page `/developer`, with timings, a map of the products and the run's name, and
            messages may name folders of the server.
        similarity: whether the similarity of products is shown.
        currency: text after each price, such as `€`; empty for none.
        needs_key: whether requests to the API need a key.
    """

    developer: bool = True
    similarity: bool = True
    currency: str = ""
    needs_key: bool = False


def create_templates(state: CatalogueState, display: Display) -> Jinja2Templates:
    """Load the templates, which escape all values and know the state of the catalogue and what to show."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fashion_cnn.retrieval.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["display"] = display
    environment.filters |= {
        "as_typed": as_typed,
        "attribute": format_attribute,
        "clock": time.ctime,
        "inline_image": inline_image,
        "number": format_number,
        "price": partial(format_price, currency=display.currency),
    }

    def context(request: Request) -> dict[str, Any]:
        updated_at = state.updated_at
        return {"state": state, "is_updated": updated_at and time.time() - updated_at < UPDATE_NOTICE_SECONDS}

    return Jinja2Templates(env=environment, context_processors=[context])


@dataclass(frozen=True)
class QueryPicture:
    """A picture of the query.

    Attributes:
        is_like: whether results should be similar to it.
        picture: an encoded image.
        prediction: its predicted classes.
        item_found: whether an item stands out from its background; None if that is not known.
        without: the search without it.
    """

    is_like: bool
    picture: bytes
    prediction: Prediction
    item_found: bool | None
    without: SearchQuery


def query_pictures(query: SearchQuery, result: SearchResult) -> list[QueryPicture]:
    """Return the pictures of a query with their predicted classes."""
    texts = [(name, text) for name in ("picture", "unlike_picture") for text in getattr(query, name)]
    pictures = (*result.pictures, *result.unlike_pictures)
    return [
        QueryPicture(name == "picture", encode_png(to_pil_image(picture)), prediction, found, query.without(name, text))
        for (name, text), picture, prediction, found in zip(
            texts, pictures, result.predictions, result.items_found, strict=True
        )
    ]


def hidden_fields(query: SearchQuery, filters: Sequence[Filter], concepts: Sequence[str]) -> list[tuple[str, str]]:
    """Return name and value of each parameter that no visible field of the form sends."""
    boxes = {(each.field, value) for each in filters for value in each.selected(query)}
    boxes |= {("concept", name) for name in concepts}
    visible = ("text", "price_min", "price_max", "page")
    return [(name, value) for name, value in query.pairs() if name not in visible and (name, value) not in boxes]


def create_router(service: SearchService, templates: Jinja2Templates, display: Display) -> APIRouter:
    """Create the routes of the pages."""
    router = APIRouter(include_in_schema=False)
    render = templates.TemplateResponse
    in_thread = service.workers.run

    @router.get("/")
    async def search(request: Request, query: QueryParameters) -> Response:
        view = service.state.require_view()
        result = await service.search(view, query)
        marked = await in_thread(lambda: [view.products(ids) for ids in (query.like, query.unlike)], is_accepted=True)
        context = {
            "query": query,
            "view": view,
            "hidden_fields": hidden_fields(query, view.filters, view.concept_names),
            "hits": result.hits,
            "matching": result.matching,
            "with_all_words": result.with_all_words,
            "colours": result.colours,
            "words": result.colours.words if result.colours else query.text.strip(),
            "pictures": query_pictures(query, result),
            "like": marked[0],
            "unlike": marked[1],
            "samples": await service.samples(view) if query.is_empty else (),
            "has_next": query.page * service.top_k < result.matching and query.page < MAX_PAGES,
        }
        return render(request, "search.html", context)

    @router.post("/")
    async def submit(request: Request) -> Response:
        view = service.state.require_view()
        async with service.uploads.read(request) as form:
            files = form.files.get("picture", [])
            boxes = parse_boxes(form.fields.pop("box", []), len(files))
            query = SearchQuery.from_form(form.fields)
            if len(files) > MAX_PICTURES:
                raise HTTPError(422, f"Too many pictures ({len(files)}): the maximum is {MAX_PICTURES}.")
            changes: dict[str, Any] = {}
            if files:
                _, pictures = await service.prepare(view, {"picture": files}, boxes)
                links = await in_thread(lambda: [*map(encode_picture, pictures["picture"])], is_accepted=True)
                # A new picture starts a new search with the same filters.
                changes = {"picture": links, "like": [], "unlike": [], "unlike_picture": []}
        return RedirectResponse(query.replace(**changes).link(), status_code=303)

    @router.post("/items")
    async def items(request: Request) -> Response:
        # For the script of the page, since the API may need a key.
        view = service.state.require_view()
        async with service.uploads.read(request) as form:
            return JSONResponse(await service.find_items(view, form.only_picture()))

    @router.get("/product")
    async def product(request: Request, id: Id, query: QueryParameters) -> Response:
        view = service.state.require_view()
        similar = await service.search(view, SearchQuery(like=[id]), top_k=_SIMILAR_PRODUCTS)
        (hit,) = await in_thread(lambda: view.products([id]), is_accepted=True)
        calibrated = view.snapshot.metadata.temperature is not None
        context = {"query": query, "hit": hit, "hits": similar.hits, "calibrated": calibrated}
        return render(request, "product.html", context)

    if display.developer:

        @router.get("/developer")
        async def developer(request: Request) -> Response:
            view = service.state.require_view()
            totals = service.latencies.totals()
            context = {
                "view": view,
                "projection": await in_thread(lambda: view.projection),
                "bars": histogram(totals),
                "searches": len(totals),
                "percentiles": service.latencies.percentiles(),
                "tables": evaluation_tables(service.state.run),
            }
            return render(request, "developer.html", context)

    @router.get("/api")
    async def api(request: Request) -> Response:
        context = {
            "operations": operations(request.app.openapi()),
            "base": str(request.base_url),
            "needs_key": display.needs_key,
        }
        return render(request, "api.html", context)

    return router
