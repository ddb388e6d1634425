"""The ASGI application: routes, error responses, and the refresh of the catalogue."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from fashion_cnn.errors import UserError
from fashion_cnn.retrieval.web import api, pages
from fashion_cnn.retrieval.web.access import Access, with_access
from fashion_cnn.retrieval.web.errors import HTTPError, NoCatalogueError, describe_invalid
from fashion_cnn.retrieval.web.monitoring import Monitoring, route_path
from fashion_cnn.retrieval.web.service import SearchService
from fashion_cnn.retrieval.web.state import CatalogueState

# Headings of error pages that are clearer than the standard phrases.
_HEADINGS = {
    413: "Upload too large",
    415: "Unsupported picture file",
    422: "Invalid search",
    503: "Temporarily unavailable",
}


def create_app(
    service: SearchService,
    *,
    access: Access,
    refresh_seconds: float,
    display: pages.Display | None = None,
    log_requests: bool = False,
) -> ASGIApp:
    """Create the application.

    Args:
        service: the search service.
        access: who may send requests.
        refresh_seconds: time between checks for a newer version of the catalogue.
        display: what pages show.
        log_requests: print a line for each request on standard error, without its query.
    """
    display = display or pages.Display()
    monitoring = Monitoring(service.state, log_requests=log_requests)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        refreshing = asyncio.create_task(_refresh(service.state, refresh_seconds))
        yield
        refreshing.cancel()
        with suppress(asyncio.CancelledError):
            await refreshing
        service.close()

    app = FastAPI(
        title="Visual product search",
        version="1",
        summary="Search a product catalogue by picture, by words, or by both.",
        # Swagger and ReDoc would load scripts from another host; /api is a page of this package.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    templates = pages.create_templates(service.state, display)
    routers = (
        pages.create_router(service, templates, display),
        api.search_router(service),
        api.product_router(service),
        api.status_router(service, developer=display.developer),
        monitoring.router(),
    )
    for router in routers:
        app.include_router(router)
    app.mount("/static", StaticFiles(packages=[("fashion_cnn.retrieval.web", "static")]))
    methods = _allowed_methods(routers)
    _add_error_handlers(app, service.state, templates, methods, developer=display.developer)
    return monitoring.watch(with_access(app, access), {*methods, "/openapi.json"})


def _allowed_methods(routers: Iterable[APIRouter]) -> dict[str, set[str]]:
    """Collect the HTTP methods of each path."""
    methods: dict[str, set[str]] = {}
    for route in (route for router in routers for route in router.routes if isinstance(route, Route)):
        allowed = methods.setdefault(route_path(route.path), {"OPTIONS"})
        allowed.update(route.methods or ())
        if "GET" in allowed:
            allowed.add("HEAD")
    return methods


def _add_error_handlers(
    app: FastAPI,
    state: CatalogueState,
    templates: Jinja2Templates,
    methods: Mapping[str, Collection[str]],
    *,
    developer: bool,
) -> None:
    """Turn errors into responses: JSON below `/api/`, otherwise pages.

    Args:
        app: the application.
        state: the catalogue, which keeps the reason why it cannot be read.
        templates: the templates of the pages.
        methods: the allowed methods of each path.
        developer: whether messages may name folders of the server.
    """

    def respond(
        request: Request,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        template: str = "error.html",
    ) -> Response:
        if request.url.path.startswith("/api/"):
            return api.LenientJSONResponse({"error": message, "status": status}, status, headers)
        heading = _HEADINGS.get(status) or HTTPStatus(status).phrase
        return templates.TemplateResponse(request, template, {"heading": heading, "message": message}, status, headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message, headers = error.detail, error.headers
        if error.status_code == 405:
            # The framework knows the methods of one route; a path may have several.
            path = route_path(request.url.path)
            headers = {"Allow": ", ".join(sorted(methods.get(path, ("GET", "HEAD", "OPTIONS"))))}
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        if not isinstance(error, HTTPError):  # raised by the framework
            details = {404: "This page does not exist.", 405: f"Method {request.method} is not allowed here."}
            message = details.get(error.status_code, message)
        template = "no_catalogue.html" if isinstance(error, NoCatalogueError) else "error.html"
        return respond(request, error.status_code, message, headers, template)

    @app.exception_handler(RequestValidationError)
    async def invalid_value(request: Request, error: RequestValidationError) -> Response:
        return respond(request, 422, describe_invalid(error))

    # Mistakes in a query are HTTP errors; the others are damaged files and errors of the disk, whose messages name it.
    @app.exception_handler(UserError)
    async def unusable_catalogue(request: Request, error: UserError) -> Response:
        state.report(str(error))
        hidden = "The catalogue cannot be read at the moment. The server's log has the reason."
        return respond(request, 503, str(error) if developer else hidden)

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        return respond(request, 500, "Internal error. The server's log has the details.")


async def _refresh(state: CatalogueState, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await run_sync(state.refresh)
