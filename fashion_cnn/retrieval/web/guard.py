"""What holds for every answer, errors included: who may ask, what a browser may do with it, and HEAD."""

import re
from collections.abc import Collection
from ipaddress import ip_address

from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    # The address holds the whole query.
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
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
                    (name.encode(), value.encode()) for name, value in _HEADERS.items() if name.encode() not in given
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
