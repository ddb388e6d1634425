"""Monitoring of the server: health, readiness, figures for Prometheus, and a log of requests."""

import sys
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fashion_cnn.errors import printable
from fashion_cnn.retrieval.web.access import HEALTH_PATHS
from fashion_cnn.retrieval.web.state import CatalogueState

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_HEALTH, _READINESS = HEALTH_PATHS
# All requests for a product count as this path; no other path contains a value.
PRODUCT_PATH = "/api/products/{id}"


class Monitoring:
    """Counts and times requests by path, and prints a line for each if that is wanted.

    Neither the query nor the body of a request is kept or printed.

    Args:
        state: the catalogue.
        log_requests: print a line for each request on standard error.
    """

    def __init__(self, state: CatalogueState, *, log_requests: bool) -> None:
        self._state = state
        self._log_requests = log_requests
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fashion_cnn_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "fashion_cnn_request_seconds",
            "Time from a request's header to the end of its response.",
            ["path"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        figures: dict[str, tuple[str, Callable[[], float]]] = {
            "ready": ("1 if there is a catalogue to search in.", lambda: self.is_ready),
            "products": ("Products in the catalogue.", lambda: len(state.view.snapshot) if state.view else 0),
            "catalogue_version": (
                "Version of the catalogue.",
                lambda: state.view.snapshot.version if state.view else 0,
            ),
            "catalogue_problem": (
                "1 if its newest version, or the newest concepts, cannot be loaded.",
                lambda: state.problem is not None,
            ),
        }
        for name, (description, read) in figures.items():
            Gauge(f"fashion_cnn_{name}", description, registry=self._registry).set_function(read)

    @property
    def is_ready(self) -> bool:
        """True if there is a catalogue to search in."""
        return self._state.view is not None

    def router(self) -> APIRouter:
        """Create the routes. Their docstrings are part of the API description."""
        router = APIRouter()

        @router.get(_HEALTH, summary="Is the server running", tags=["monitoring"])
        async def health() -> dict[str, str]:
            return {"status": "ok"}

        @router.get(
            _READINESS,
            summary="Can it search",
            tags=["monitoring"],
            responses={503: {"description": "There is no catalogue yet"}},
        )
        async def readiness() -> Response:
            ready = self.is_ready
            return JSONResponse({"status": "ready" if ready else "no catalogue"}, 200 if ready else 503)

        @router.get("/metrics", summary="Figures in the format of Prometheus", tags=["monitoring"])
        async def metrics() -> Response:
            return Response(generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})

        return router

    def watch(self, app: ASGIApp, paths: Collection[str]) -> ASGIApp:
        """Count, time and log the requests to an application; those to other than these paths count as one path."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start = time.perf_counter()
            # This status stands for no response, since the client closed the connection.
            status = 499

            async def send_and_note(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, send_and_note)
            finally:
                self._record(scope, paths, status, time.perf_counter() - start)

        return watched

    def _record(self, scope: Scope, paths: Collection[str], status: int, seconds: float) -> None:
        path = route_path(scope["path"])
        if path.startswith("/static/"):
            path = "/static"
        elif path not in paths:
            path = "other"
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)
        if self._log_requests:
            client = scope["client"][0] if scope.get("client") else "-"
            moment = datetime.now(UTC).isoformat(timespec="seconds")
            line = f"{moment} {client} {scope['method']} {path} {status} {1000 * seconds:.0f} ms"
            print(printable(line), file=sys.stderr, flush=True)


def route_path(path: str) -> str:
    """Return the path of the route that answers a path; of most routes it is the same."""
    return PRODUCT_PATH if path.startswith(PRODUCT_PATH.partition("{")[0]) else path
