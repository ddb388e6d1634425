"""Connections of the HTTP server: limited in number, in total and per address, and in the time that they may be idle.

uvicorn alone waits for ever for clients that connect and send nothing, an unfinished request, or do not read the
response; as soon as these take all connections, it turns everyone else away.
"""

import math
import socket
from asyncio import BaseTransport
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
# Number of chunks of an upload that may have any size, and minimum mean size of further chunks in bytes.
_FREE_CHUNKS, _MIN_CHUNK_BYTES = 500, 1024


class _Parser(h11.Connection):
    """A parser that closes the connection of an upload in very many tiny chunks, which take as long as large ones.

    Args:
        close: closes the connection.
        settings: further arguments of `h11.Connection`.
    """

    def __init__(self, close: Callable[[], None], **settings: int) -> None:
        super().__init__(h11.SERVER, **settings)
        self._close = close
        self._chunks = self._size = 0

    def next_event(self) -> Any:
        """Return the next event of the request, see `h11.Connection`."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._size = 0
        elif isinstance(event, h11.Data):
            self._chunks, self._size = self._chunks + event.chunk_start, self._size + len(event.data)
            if self._chunks > _FREE_CHUNKS + self._size // _MIN_CHUNK_BYTES:
                self._close()
                return h11.NEED_DATA
        return event


class LimitedConnection(H11Protocol):
    """A connection that knows since when it has been waiting for its client.

    Attributes:
        limit: maximum number of connections.
        limit_per_address: maximum number of connections of one IP address.
        waiting_since: when it was opened, answered its last request, or could last send a part of a response, in
            seconds of the event loop's clock. Received bytes do not count: a client may send a header byte by byte.
    """

    limit: int
    limit_per_address: int
    waiting_since: float
    _unsent = 0

    def connection_made(self, transport: BaseTransport) -> None:
        """Make room for a new connection: the one that has been idle for the longest is closed, if need be."""
        super().connection_made(transport)  # type: ignore[arg-type]
        max_header = self.config.h11_max_incomplete_event_size
        self.conn = _Parser(self.transport.abort, **({"max_incomplete_event_size": max_header} if max_header else {}))
        self.waiting_since = self.loop.time()
        others = [
            each
            for each in self.connections
            if isinstance(each, LimitedConnection) and each is not self and not each.transport.is_closing()
        ]
        same_address = [each for each in others if each._address == self._address]
        if len(same_address) >= self.limit_per_address and not _close_oldest(same_address):
            self.transport.write(_BUSY)
            self.transport.close()
        elif len(others) >= self.limit:
            # If none is idle, uvicorn answers the request with 503.
            _close_oldest(others)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    @property
    def is_waiting(self) -> bool:
        """True if the server waits for the client to send a request or to read a response."""
        return self.cycle is None or self.cycle.response_complete or self.flow.write_paused

    def close_if_idle(self, seconds: float) -> None:
        """Close the connection if it has been waiting for too long."""
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent or not self.is_waiting:
            self.waiting_since = self.loop.time()
        self._unsent = unsent
        if self.loop.time() - self.waiting_since > seconds:
            self.transport.abort()

    @property
    def _address(self) -> str | None:
        return self.client and self.client[0]


def _close_oldest(connections: list[LimitedConnection]) -> bool:
    """Close the connection that has been waiting for the longest, if any waits."""
    waiting = [each for each in connections if each.is_waiting]
    if waiting:
        min(waiting, key=lambda each: each.waiting_since).transport.abort()
    return bool(waiting)


class LimitedServer(uvicorn.Server):
    """A server that closes idle connections.

    Args:
        app: the application.
        limit: maximum number of connections.
        limit_per_address: maximum number of connections of one IP address.
        idle_seconds: maximum time that the server waits for a request, or for a client to read a response.
        on_start: called when the server answers requests.
        settings: further settings of uvicorn.
    """

    def __init__(
        self,
        app: Any,
        *,
        limit: int,
        limit_per_address: int,
        idle_seconds: float,
        on_start: Callable[[], None],
        **settings: Any,
    ) -> None:
        class Connection(LimitedConnection):
            pass

        Connection.limit, Connection.limit_per_address = limit, limit_per_address
        self._idle_seconds = idle_seconds
        self._on_start = on_start
        # Without WebSocket, whose connections uvicorn does not list.
        settings |= {"http": Connection, "ws": "none", "limit_concurrency": limit + 1}
        super().__init__(uvicorn.Config(app, timeout_keep_alive=math.ceil(idle_seconds), **settings))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def on_tick(self, counter: int) -> bool:
        """Close idle connections once a second; uvicorn calls this ten times a second."""
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, LimitedConnection):
                    connection.close_if_idle(self._idle_seconds)
        return await super().on_tick(counter)
