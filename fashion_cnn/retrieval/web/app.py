"""The ASGI application: routes, error responses, security headers, and the refresh of the catalogue."""

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from ipaddress import ip_address

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fashion_cnn.retrieval.catalogue import DamagedCatalogueError
from fashion_cnn.retrieval.web import api, pages
from fashion_cnn.retrieval.web.errors import HTTPError, NoCatalogueError
from fashion_cnn.retrieval.web.service import SearchService
from fashion_cnn.retrieval.web.state import CatalogueState

_SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    # The address contains the whole query. Not no-referrer: browsers would hide the origin of the page's own form.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
# Headings of error pages that are clearer than the standard phrases.
_HEADINGS = {
    413: "Upload too large",
    415: "Unsupported picture file",
    422: "Invalid search",
    503: "Temporarily unavailable",
}
_STATIC_MAX_AGE = 300
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class SecurityMiddleware:
    """Checks where a request comes from, answers HEAD as GET without a body, and adds security and cache headers.

    A server that only this machine can reach must refuse other host names: otherwise a website whose name resolves to
    this machine could read responses through a visitor's browser (DNS rebinding). No website may let its visitors'
    browsers send forms here.

    Args:
        app: the application.
        hosts: the host names that are accepted; None accepts any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"
        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                is_file = scope["path"].startswith("/static/") and message["status"] < 400
                headers.setdefault("cache-control", f"max-age={_STATIC_MAX_AGE}" if is_file else "no-cache")
            elif message["type"] == "http.response.body" and is_head:
                message = {**message, "body": b""}
            await send(message)

        headers = Headers(scope=scope)
        if self._hosts is not None and _host_name(headers) not in self._hosts:
            names = ", ".join(sorted(self._hosts))
            text = f"Invalid Host header: use {names}, or start the server with host=ADDRESS."
            await _plain_response(scope, 400, text)(scope, receive, send_with_headers)
        elif scope["method"] not in _SAFE_METHODS and _is_cross_site(headers):
            text = "This form was sent by another website: send it from the page of the search itself."
            await _plain_response(scope, 403, text)(scope, receive, send_with_headers)
        else:
            try:
                await self._app({**scope, "method": "GET"} if is_head else scope, receive, send_with_headers)
            except asyncio.CancelledError:  # the server stops, and does not wait any longer
                if is_started:
                    raise
                await _plain_response(scope, 503, "The server is stopping.")(scope, receive, send_with_headers)


def _plain_response(scope: Scope, status: int, text: str) -> Response:
    """A response without a page."""
    if scope["path"].startswith("/api/"):
        return JSONResponse({"error": text, "status": status}, status)
    return PlainTextResponse(text + "\n", status)


def allowed_hosts(address: str) -> set[str] | None:
    """The host names of a server at an IP address; None (any) if other machines can reach it."""
    if not ip_address(address).is_loopback:
        return None
    return {"localhost", "127.0.0.1", "[::1]", f"[{address}]" if ":" in address else address}


def _host_name(headers: Headers) -> str | None:
    """The name in the Host header, without the port."""
    values = headers.getlist("host")
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d*)?", values[0].lower()) if len(values) == 1 else None
    return match[1] if match else None


def _is_cross_site(headers: Headers) -> bool:
    """Return whether a page of another website made the browser send a request; scripts send neither header."""
    site = headers.get("sec-fetch-site")
    if site in ("same-origin", "none", "cross-site"):
        return site == "cross-site"
    # Browsers do not name the site over plain HTTP, except on this machine. A proxy may replace the Host header.
    hosts = {
        value.strip().lower() for name in ("host", "x-forwarded-host") for value in headers.get(name, "").split(",")
    }
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() not in hosts - {""}


def create_app(service: SearchService, *, address: str, refresh_seconds: float) -> ASGIApp:
    """Create the application.

    Args:
        service: the search service.
        address: IP address that it is served at.
        refresh_seconds: time between checks for a newer version of the catalogue.
    """

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
        summary="Search a product catalogue by picture, by title words, or by both.",
        # Swagger and ReDoc would load scripts from another host; /api is a page of this package.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    templates = pages.create_templates(service.state)
    methods: dict[str, set[str]] = {}
    for router in (pages.create_router(service, templates), api.create_router(service)):
        app.include_router(router)
        for route in router.routes:
            if isinstance(route, Route):
                methods.setdefault(route.path, {"HEAD", "OPTIONS"}).update(route.methods or ())
    app.mount("/static", StaticFiles(packages=[("fashion_cnn.retrieval.web", "static")]))

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
            headers = {"Allow": ", ".join(sorted(methods.get(request.url.path, ("GET", "HEAD", "OPTIONS"))))}
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        if not isinstance(error, HTTPError):  # raised by the framework
            details = {404: "This page does not exist.", 405: f"Method {request.method} is not allowed here."}
            message = details.get(error.status_code, message)
        template = "no_catalogue.html" if isinstance(error, NoCatalogueError) else "error.html"
        return respond(request, error.status_code, message, headers, template)

    @app.exception_handler(RequestValidationError)
    async def invalid_value(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = next((str(part) for part in first["loc"] if part not in ("query", "body")), "query")
        return respond(request, 422, f"Invalid value of {name}: {first['msg']}.")

    @app.exception_handler(DamagedCatalogueError)
    async def damaged_catalogue(request: Request, error: DamagedCatalogueError) -> Response:
        service.state.report(str(error))
        return respond(request, 503, str(error))

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        return respond(request, 500, "Internal error. The server's log has the details.")

    return SecurityMiddleware(app, allowed_hosts(address))


async def _refresh(state: CatalogueState, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await run_sync(state.refresh)
