"""Connections of the HTTP server: limited in number, in total and per address, and in the time that they may be idle.

uvicorn alone waits for ever for clients that connect and send nothing, an unfinished request, or do not read the
response; as soon as these take all connections, it turns everyone else away.
"""

import math
from asyncio import BaseTransport
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class LimitedConnection(H11Protocol):
    """A connection that knows since when it has been waiting for its client.

    Attributes:
        limit: most connections.
        limit_per_address: most connections of one IP address.
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
        limit: most connections.
        limit_per_address: most connections of one IP address.
        idle_seconds: most seconds that the server waits for a request, or for a client to read a response.
        settings: further settings of uvicorn.
    """

    def __init__(self, app: Any, *, limit: int, limit_per_address: int, idle_seconds: float, **settings: Any) -> None:
        class Connection(LimitedConnection):
            pass

        Connection.limit, Connection.limit_per_address = limit, limit_per_address
        self._idle_seconds = idle_seconds
        # Without WebSocket, whose connections uvicorn does not list.
        settings |= {"http": Connection, "ws": "none", "limit_concurrency": limit + 1}
        super().__init__(uvicorn.Config(app, timeout_keep_alive=math.ceil(idle_seconds), **settings))

    async def on_tick(self, counter: int) -> bool:
        """Close idle connections once a second; uvicorn calls this ten times a second."""
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, LimitedConnection):
                    connection.close_if_idle(self._idle_seconds)
        return await super().on_tick(counter)
