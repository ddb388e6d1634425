"""The application: pages and API of a shop, errors as answers, and what holds for every response."""

import asyncio
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from ipaddress import ip_address

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fashion_cnn.retrieval.web.api import Json, api
from fashion_cnn.retrieval.web.errors import NoCatalogue, Refused
from fashion_cnn.retrieval.web.pages import Rendering, pages
from fashion_cnn.retrieval.web.service import Desk
from fashion_cnn.retrieval.web.state import Shop

_SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    # The address holds the whole query.
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
# In a visitor's words, where the standard's are a program's.
_HEADINGS = {
    413: "Too large",
    415: "This is no picture that can be searched by",
    422: "This cannot be searched",
    503: "Not now",
}


class Guard:
    """Wraps an application. names: the hosts that a request may name, such as localhost; None for any.

    A server of this machine alone takes only its own names: else another site, whose name was made to point here, could
    have a visitor's browser ask and read the answer (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ())]
                given = {name.lower() for name, _ in headers}
                headers += [
                    (name.encode(), value.encode())
                    for name, value in _SECURITY_HEADERS.items()
                    if name.encode() not in given
                ]
                if b"cache-control" not in given:
                    headers.append((b"cache-control", b"no-cache"))
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body" and is_head:
                message = {**message, "body": b""}
            await send(message)

        if self._names is not None and _name(scope) not in self._names:
            said = f"This server answers to {', '.join(sorted(self._names))} alone: host=ADDRESS starts it for others."
            as_json = scope["path"].startswith("/api/")
            answer = (
                JSONResponse({"error": said, "status": 400}, 400) if as_json else PlainTextResponse(said + "\n", 400)
            )
            await answer(scope, receive, guarded)
            return
        await self._app({**scope, "method": "GET"} if is_head else scope, receive, guarded)


def own_names(address: str) -> set[str] | None:
    """The names that a server at this IP address answers to; None for one that others can reach."""
    if not ip_address(address).is_loopback:
        return None
    return {"localhost", "127.0.0.1", "[::1]", f"[{address}]" if ":" in address else address}


def _name(scope: Scope) -> str | None:
    """The host that a request names, without its port."""
    named = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
    parts = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d*)?", named[0]) if len(named) == 1 else None
    return parts[1] if parts else None


def application(desk: Desk, *, address: str, refresh_seconds: float) -> ASGIApp:
    """address: where it is served, which says whose requests are taken. refresh_seconds: how often it looks whether the
    catalogue has a newer version.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        keeping_up = asyncio.create_task(_keep_up(desk.shop, refresh_seconds))
        yield
        keeping_up.cancel()
        with suppress(asyncio.CancelledError):
            await keeping_up

    # The pages of Swagger and ReDoc load from another host: /api is one of our own.
    app = FastAPI(
        title="Visual product search",
        version="1",
        summary="What in a catalogue looks like pictures, sounds like words, or both.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    rendering = Rendering(desk.shop)
    app.include_router(pages(desk, rendering))
    app.include_router(api(desk))

    def answered(request: Request, refused: Refused) -> Response:
        if request.url.path.startswith("/api/"):
            response: Response = Json({"error": refused.message, "status": refused.status}, refused.status)
        elif isinstance(refused, NoCatalogue):
            response = rendering.page("no_catalogue.html", refused.status)
        else:
            heading = _HEADINGS.get(refused.status) or HTTPStatus(refused.status).phrase
            response = rendering.page("error.html", refused.status, heading=heading, message=refused.message)
        response.headers.update(refused.headers)
        return response

    @app.exception_handler(Refused)
    async def refusal(request: Request, error: Refused) -> Response:
        return answered(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        said = {404: "There is no such page.", 405: f"{request.method} is not possible here."}
        message = said.get(error.status_code, str(error.detail))
        return answered(request, Refused(error.status_code, message, error.headers))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = next((str(part) for part in first["loc"] if part not in ("query", "body")), "query")
        return answered(request, Refused(422, f"{name} cannot be taken: {first['msg']}."))

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> Response:
        # The server's own log has the traceback.
        return answered(request, Refused(500, "Something went wrong on this side; the server's log says what."))

    return Guard(app, own_names(address))


async def _keep_up(shop: Shop, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await run_sync(shop.refresh)
