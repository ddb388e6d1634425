"""The page and API of the product search: `python -m fashion_cnn.serve run=latest`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_reject, require
from fashion_cnn.errors import Interrupted, UserError

if TYPE_CHECKING:
    import uvicorn
    from omegaconf import DictConfig
    from starlette.types import ASGIApp

# Beyond them a client gets a bare 503: long before that the queue says so in words.
_CONNECTIONS = 512


def serve(config: DictConfig) -> None:
    """Serve until Ctrl-C. Raises UserError for an address that cannot be had, and a catalogue of another network."""
    require("search", "lancedb", "fastapi", "uvicorn", "jinja2", "python_multipart")
    _check(config)
    import torch

    from fashion_cnn.pictures.decoding import silence_pillow

    with listening_at(config.host, config.port) as listening:
        # Searches run beside each other: several threads in each would only wait for one another.
        torch.set_num_threads(1)
        address = listening.getsockname()
        app = build(config, address[0])
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        server = server_of(
            app,
            log_level="error",
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=3,
        )
        print(f"Open http://{shown}:{address[1]}  (Ctrl-C ends it)", flush=True)
        try:
            with silence_pillow():
                server.run(sockets=[listening])
        except KeyboardInterrupt:
            raise Interrupted("Stopped.") from None


def server_of(app: ASGIApp, **settings: Any) -> uvicorn.Server:
    """A server with uvicorn's `settings`, that takes addresses as long as a search's."""
    import uvicorn

    from fashion_cnn.retrieval.web.query import MAX_LINK_LENGTH

    # Of a request's head, in which the address is the most.
    return uvicorn.Server(uvicorn.Config(app, h11_max_incomplete_event_size=2 * MAX_LINK_LENGTH, **settings))


def build(config: DictConfig, address: str) -> ASGIApp:
    """Create the application.

    Args:
        config: the composed `conf/serve.yaml`.
        address: IP address that it is served at.

    Raises:
        UserError: if there is no such run, or another network made the catalogue.
    """
    from fashion_cnn.retrieval.catalogue import find_run_and_catalogue
    from fashion_cnn.retrieval.web.app import create_app
    from fashion_cnn.retrieval.web.service import Limits, SearchService
    from fashion_cnn.retrieval.web.state import CatalogueState
    from fashion_cnn.retrieval.web.views import samples_of_test_set

    run, catalogue = find_run_and_catalogue(config.run, config.catalogue, Path(config.runs_dir))
    state = CatalogueState(run, catalogue, reject=config.reject)
    samples = samples_of_test_set(run, config.data.root)
    service = SearchService(state, Limits(**config.limits), samples, top_k=config.top_k)
    return create_app(service, address=address, refresh_seconds=config.refresh_seconds)


def _check(config: DictConfig) -> None:
    check_reject(config.reject)
    if not 1 <= config.top_k <= 100:
        raise UserError(f"top_k={config.top_k} is not possible: give 1 to 100 products a page.", status=2)
    if not config.host:
        raise UserError("host= names no address: 127.0.0.1 is this machine alone, 0.0.0.0 every address.", status=2)
    if not 0 <= config.port <= 65535:
        raise UserError(f"port={config.port} is no port: give one up to 65535, or 0 for any that is free.", status=2)
    if not config.refresh_seconds > 0:
        raise UserError(f"refresh_seconds={config.refresh_seconds} is not possible: give more than 0.", status=2)
    for name, value in config.limits.items():
        if not value > 0:
            raise UserError(f"limits.{name}={value} is not possible: give more than 0.", status=2)


def listening_at(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free. Raises UserError where it cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(
            f"host={host} is no address of this machine: 127.0.0.1 serves it to this machine alone."
        ) from error
    family, kind, protocol, _, address = found[0]
    # asyncio sends without delay only where a socket says that it is TCP: else each answer comes 40 ms late.
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        what = f"{error.strerror}".lower()
        raise UserError(f"host={host} port={port} cannot be served ({what}): name another port=, or host=.") from error
    return listening


def main() -> None:
    run_command("serve", serve)


if __name__ == "__main__":
    main()
