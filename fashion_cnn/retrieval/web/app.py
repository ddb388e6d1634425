"""The application: pages and API of a shop, and errors that are answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from fashion_cnn.retrieval.web.api import Json, api
from fashion_cnn.retrieval.web.desk import Desk
from fashion_cnn.retrieval.web.guard import Guard, own_names
from fashion_cnn.retrieval.web.pages import pages
from fashion_cnn.retrieval.web.refusals import NoCatalogue, Refused
from fashion_cnn.retrieval.web.rendering import Rendering
from fashion_cnn.retrieval.web.shop import Shop

# In a visitor's words, where the standard's are a program's.
_HEADINGS = {
    413: "Too large",
    415: "This is no picture that can be searched by",
    422: "This cannot be searched",
    503: "Not now",
}


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
