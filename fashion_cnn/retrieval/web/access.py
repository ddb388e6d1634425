"""Who may send requests: host names, other websites, API keys, and the number of requests of a client."""

import asyncio
import hashlib
import hmac
import math
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fashion_cnn.errors import UserError
from fashion_cnn.retrieval.web.errors import HTTPError
from fashion_cnn.runs.damage import read_regular

# Routes for the machines that watch the server: they may use any host name, need no key and are not counted.
HEALTH_PATHS = ("/healthz", "/readyz")
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
_STATIC_MAX_AGE = 300
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_THUMBNAIL_PATH = "/api/thumbnail"
# Paths that need an API key where there are any. Pictures in a page cannot send one.
_PROTECTED = re.compile(r"/api/(?!thumbnail$)|/metrics$|/openapi\.json$")
_MAX_KEY_FILE_BYTES = 1_000_000
_MIN_KEY_LENGTH = 16
# This word follows a key that may change products.
_WRITER = re.compile(r"\s+write$")
# Maximum number of clients whose requests are counted; those with the fewest requests are forgotten first.
_MAX_CLIENTS = 10_000
_IPV6_NETWORK_BYTES = 8
# Key of the `Client` in the scope of a request.
_CLIENT = "fashion_cnn.client"


@dataclass(frozen=True)
class Access:
    """Who may send requests.

    Attributes:
        hosts: accepted host names; None accepts any.
        origins: websites, such as `https://shop.example`, whose pages may use the API and show thumbnails.
        key_digests: SHA-256 digests of the API keys; empty if none is needed.
        writer_digests: those of the keys that may change products.
        requests_per_minute: maximum number of requests of a client (a key or an address); None for no limit.
    """

    hosts: Collection[str] | None = None
    origins: tuple[str, ...] = ()
    key_digests: frozenset[bytes] = frozenset()
    writer_digests: frozenset[bytes] = frozenset()
    requests_per_minute: float | None = None


def check_origins(origins: Collection[str]) -> None:
    """Check that websites are written as in the Origin header of browsers.

    Raises:
        UserError: for the first that is not.
    """
    for origin in origins:
        if not re.fullmatch(r"https?://[a-z0-9.-]+(:\d+)?|https?://\[[0-9a-f:]+\](:\d+)?", origin):
            raise UserError(
                f"allow_origins={origin} is no website: give scheme and host in small letters, such as "
                "https://shop.example.",
                status=2,
            )


def check_hosts(hosts: Collection[str]) -> set[str]:
    """Check host names, and return them in lower case, as requests are compared with them.

    Raises:
        UserError: for the first that is none, such as a name with a port.
    """
    for host in hosts:
        if not re.fullmatch(r"[\w.-]+|\[[0-9a-f:.]+\]", host, re.ASCII | re.IGNORECASE):
            raise UserError(
                f"allow_hosts={host} is no host name: give names without scheme and port, such as shop.example.",
                status=2,
            )
    return {host.lower() for host in hosts}


def read_api_keys(file: str) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """Read the API keys in a file, one per line; empty lines and lines that begin with # are skipped.

    A key that is followed by the word `write` may change products.

    Returns:
        The SHA-256 digests of all keys, and of those that may change products.

    Raises:
        UserError: if the file cannot be read, or holds no key or one of fewer than 16 characters.
    """
    try:
        text = read_regular(Path(file).expanduser(), _MAX_KEY_FILE_BYTES).decode()
    except FileNotFoundError:
        raise UserError(f"api_keys={file} does not exist: give a file with one key a line.") from None
    except ValueError as error:
        raise UserError(f"api_keys={file} cannot be used ({error}): give a file with one key a line.") from error
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    keys = [_WRITER.sub("", line) for line in lines]
    writers = [bool(_WRITER.search(line)) for line in lines]
    if not keys:
        raise UserError(f"api_keys={file} holds no key: write one a line, or give api_keys=null.")
    if short := [number for number, key in enumerate(keys, start=1) if len(key) < _MIN_KEY_LENGTH]:
        raise UserError(
            f"api_keys={file}: key {short[0]} has fewer than {_MIN_KEY_LENGTH} characters: make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'."
        )
    digests = {hashlib.sha256(key.encode()).digest(): may_write for key, may_write in zip(keys, writers, strict=True)}
    return frozenset(digests), frozenset(digest for digest, may_write in digests.items() if may_write)


def allowed_hosts(address: str) -> set[str] | None:
    """Return the host names of a server at an IP address; None (any) if other machines can reach it."""
    if not ip_address(address).is_loopback:
        return None
    return {"localhost", "127.0.0.1", "[::1]", f"[{address}]" if ":" in address else address}


def with_access(app: ASGIApp, access: Access) -> ASGIApp:
    """Let only some clients use an application, and add security and cache headers to its responses.

    Args:
        app: the application.
        access: who may send requests.
    """
    app = _ClientMiddleware(app, access)
    if access.origins:
        app = CORSMiddleware(
            app,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "x-api-key", "content-type"],
            expose_headers=["retry-after"],
        )
    return _SecurityMiddleware(app, access)


class _SecurityMiddleware:
    """Checks where a request comes from, answers HEAD as GET without a body, and adds security and cache headers.

    A server that only this machine can reach must refuse other host names: otherwise a website whose name resolves to
    this machine could read responses through a visitor's browser (DNS rebinding). No website may let its visitors'
    browsers send forms here, unless it is one of `Access.origins`.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

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
                if self._access.origins and scope["path"] == _THUMBNAIL_PATH:
                    headers["cross-origin-resource-policy"] = "cross-origin"
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                is_file = scope["path"].startswith("/static/") and message["status"] < 400
                headers.setdefault("cache-control", f"max-age={_STATIC_MAX_AGE}" if is_file else "no-cache")
            elif message["type"] == "http.response.body" and is_head:
                message = {**message, "body": b""}
            await send(message)

        headers = Headers(scope=scope)
        hosts = self._access.hosts
        if hosts is not None and scope["path"] not in HEALTH_PATHS and _host_name(headers) not in hosts:
            names = ", ".join(sorted(hosts))
            text = f"Invalid Host header: use {names}, or start the server with host=ADDRESS or allow_hosts=[NAME]."
            await plain_response(scope, 400, text)(scope, receive, send_with_headers)
        elif (
            scope["method"] not in _SAFE_METHODS
            and headers.get("origin") not in self._access.origins
            and _is_cross_site(headers)
        ):
            text = "This form was sent by another website: send it from the page of the search itself."
            await plain_response(scope, 403, text)(scope, receive, send_with_headers)
        else:
            try:
                await self._app({**scope, "method": "GET"} if is_head else scope, receive, send_with_headers)
            except asyncio.CancelledError:  # the server stops, and does not wait any longer
                if is_started:
                    raise
                await plain_response(scope, 503, "The server is stopping.")(scope, receive, send_with_headers)


@dataclass(frozen=True)
class Client:
    """The sender of a request, which routes find with `client_of`.

    Attributes:
        name: digest of its API key, or without a valid one its network.
        may_write: whether its API key may change products.
        allowance: number of requests that it may still send; None for any number.
    """

    name: str
    may_write: bool = False
    allowance: "Allowance | None" = None

    def count_request(self) -> None:
        """Count a request.

        Raises:
            HTTPError: with status 429 and `Retry-After` if there were too many.
        """
        seconds = self.allowance.use(self.name) if self.allowance else 0
        if self.allowance and seconds:
            raise HTTPError(
                429,
                f"Too many requests: the limit is {self.allowance.per_minute:g} a minute. Try again later.",
                {"Retry-After": str(math.ceil(seconds))},
            )


def client_of(scope: Scope) -> Client:
    """Return the sender of a request."""
    client: Client = scope[_CLIENT]
    return client


class _ClientMiddleware:
    """Asks for an API key below `/api`, and limits the number of requests of a client."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._allowance = None if access.requests_per_minute is None else Allowance(access.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI request."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        path = scope["path"]
        if path in HEALTH_PATHS or path.startswith("/static/"):
            return None
        key = self._key(Headers(scope=scope))
        scope[_CLIENT] = client = Client(
            key.hex() if key else _network(scope), key in self._access.writer_digests, self._allowance
        )
        try:
            client.count_request()
        except HTTPError as error:
            return plain_response(scope, error.status_code, error.detail, dict(error.headers or {}))
        if self._access.key_digests and key is None and _PROTECTED.match(path):
            text = "An API key is needed: send a valid one in the header Authorization: Bearer KEY, or X-API-Key: KEY."
            return plain_response(scope, 401, text, {"WWW-Authenticate": "Bearer"})
        return None

    def _key(self, headers: Headers) -> bytes | None:
        """Return the digest of the request's API key; None without a valid one."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(key.strip().encode()).digest()
        # Digests of equal length, all of which are compared: the time says nothing about the keys.
        is_known = [hmac.compare_digest(digest, known) for known in self._access.key_digests]
        return digest if any(is_known) else None


class Allowance:
    """Number of requests that each client may still send: a token bucket that fills within a minute.

    Args:
        per_minute: maximum number of requests of a client in a minute.
    """

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self._per_second = per_minute / 60
        self._most = max(per_minute, 1.0)
        # For each client, the remaining number of requests and the time at which it was computed.
        self._remaining: dict[str, tuple[float, float]] = {}

    def use(self, client: str) -> float:
        """Count a request. Returns 0, or without counting it the seconds until the client may send it."""
        now = time.monotonic()
        remaining, since = self._remaining.get(client, (self._most, now))
        remaining = min(self._most, remaining + (now - since) * self._per_second)
        if remaining < 1:
            return (1 - remaining) / self._per_second
        if client not in self._remaining and len(self._remaining) >= _MAX_CLIENTS:
            self._forget(now)
        self._remaining[client] = (remaining - 1, now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Forget the half of the clients that have sent the fewest requests."""

        def current(client: str) -> float:
            remaining, since = self._remaining[client]
            return remaining + (now - since) * self._per_second

        for client in sorted(self._remaining, key=current)[_MAX_CLIENTS // 2 :]:
            del self._remaining[client]


def plain_response(scope: Scope, status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """Create a response that is not a page: JSON below `/api/`, otherwise text.

    Args:
        scope: ASGI scope of the request.
        status: HTTP status.
        text: message for people.
        headers: further headers of the response.
    """
    if scope["path"].startswith("/api/"):
        return JSONResponse({"error": text, "status": status}, status, headers)
    return PlainTextResponse(text + "\n", status, headers)


def _network(scope: Scope) -> str:
    """Return the address of a client; for IPv6 its network, within which a client may choose any address."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ip_address(host)
    except ValueError:
        return str(host)
    if not isinstance(address, IPv6Address):
        return host
    # A socket that listens in both names clients of IPv4 by such addresses.
    return str(address.ipv4_mapped or address.packed[:_IPV6_NETWORK_BYTES].hex())


def _host_name(headers: Headers) -> str | None:
    """Return the name in the Host header, without the port; None without a valid one."""
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
