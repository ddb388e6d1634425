"""Serve the web page and JSON API of the product search: `python -m fashion_cnn.serve run=latest`."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import as_strings, check_choice, check_reject, require
from fashion_cnn.errors import Interrupted, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    import uvicorn
    from omegaconf import DictConfig
    from starlette.types import ASGIApp


def serve(config: DictConfig) -> None:
    """Serve until Ctrl-C.

    Args:
        config: the composed `conf/serve.yaml`.

    Raises:
        UserError: if an option is invalid, the address is not available, or another network made the catalogue.
        Interrupted: at the end.
    """
    require("search", "lancedb", "fastapi", "uvicorn", "jinja2", "python_multipart", "prometheus_client")
    if sys.platform == "win32":
        raise UserError("serve cannot limit the memory of uploaded pictures on Windows: run it on Linux, macOS or WSL.")
    _check(config)
    from fashion_cnn.pictures.decoding import silence_pillow

    with open_socket(config.host, config.port) as listener:
        if config.backend == "torch":
            from fashion_cnn.models.hardware import DEFAULT_THREADS

            # One thread for everything but a search that runs alone.
            _share_torch_threads(DEFAULT_THREADS)
        address, port = listener.getsockname()[:2]
        host = f"[{address}]" if ":" in address else address
        server = create_server(
            build_app(config, address),
            config,
            # Clients that connect earlier are refused: nothing would answer them.
            on_start=lambda: print(f"Open http://{host}:{port}  (Ctrl-C to stop)", flush=True),
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=3,
        )
        try:
            with silence_pillow():
                server.run(sockets=[listener])
        except KeyboardInterrupt:
            raise Interrupted("Stopped.") from None
        except OSError as error:  # another server has begun to listen since the start
            raise _cannot_listen(config.host, config.port, error) from error


def create_server(
    app: ASGIApp, config: DictConfig, on_start: Callable[[], None] = lambda: None, **settings: Any
) -> uvicorn.Server:
    """Create a server that closes idle connections and accepts addresses as long as those of a search with pictures.

    Args:
        app: the application.
        config: the composed `conf/serve.yaml`.
        on_start: called when it answers requests.
        settings: further settings of uvicorn.
    """
    from fashion_cnn.retrieval.web.connections import LimitedServer
    from fashion_cnn.retrieval.web.query import MAX_LINK_LENGTH

    limits = config.limits
    return LimitedServer(
        app,
        limit=limits.connections,
        limit_per_address=limits.connections_per_address,
        idle_seconds=limits.idle_seconds,
        on_start=on_start,
        # Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.
        forwarded_allow_ips=",".join(as_strings(config.trusted_proxies)),
        # Limits the size of the address and headers together.
        h11_max_incomplete_event_size=2 * MAX_LINK_LENGTH,
        **settings,
    )


def build_app(config: DictConfig, address: str) -> ASGIApp:
    """Create the application.

    Args:
        config: the composed `conf/serve.yaml`.
        address: IP address that it is served at.

    Raises:
        UserError: if there is no such run, another network made the catalogue, or an option does not fit it.
    """
    from fashion_cnn.retrieval.catalogue import find_run_and_catalogue
    from fashion_cnn.retrieval.web.access import Access, allowed_hosts, check_hosts, check_origins, read_api_keys
    from fashion_cnn.retrieval.web.app import create_app
    from fashion_cnn.retrieval.web.pages import Display
    from fashion_cnn.retrieval.web.service import Limits, SearchService
    from fashion_cnn.retrieval.web.state import CatalogueState
    from fashion_cnn.retrieval.web.views import samples_of_test_set

    origins = tuple(as_strings(config.allow_origins))
    check_origins(origins)
    keys, writers = (frozenset(), frozenset()) if config.api_keys is None else read_api_keys(str(config.api_keys))
    access = Access(
        hosts=allowed_hosts(address) if config.allow_hosts is None else check_hosts(as_strings(config.allow_hosts)),
        origins=origins,
        key_digests=keys,
        writer_digests=writers,
        requests_per_minute=config.limits.requests_per_minute,
    )
    if config.writable and not writers:
        raise UserError(
            "writable=true needs an API key that may change products: write one in api_keys=FILE, followed by a space "
            "and the word write.",
            status=2,
        )
    run, catalogue = find_run_and_catalogue(config.run, config.catalogue, Path(config.runs_dir))
    if config.writable and "://" in catalogue.uri:
        raise UserError("writable=true needs a catalogue on a disk, where one change waits for another.", status=2)
    state = CatalogueState(
        run,
        catalogue,
        reject=config.reject,
        hidden_columns=tuple(as_strings(config.hidden_columns)),
        backend=config.backend,
    )
    # A pretrained network, whose run is the folder of the catalogue, has no test set.
    has_test_set = config.samples == "test" and run.config_file.exists()
    samples = samples_of_test_set(run, config.data.root) if has_test_set else ()
    service = SearchService(state, Limits(**config.limits), samples, top_k=config.top_k, is_writable=config.writable)
    if config.backend == "torch":
        service.share_threads = _share_torch_threads
    return create_app(
        service,
        access=access,
        refresh_seconds=config.refresh_seconds,
        display=Display(config.developer, config.show_similarity, config.currency or "", needs_key=bool(keys)),
        log_requests=config.log_requests,
    )


def _share_torch_threads(running: int) -> None:
    """Let the calling thread compute with its share of the cores: searches that run in parallel compete for them."""
    import torch

    from fashion_cnn.models.hardware import DEFAULT_THREADS

    torch.set_num_threads(max(1, DEFAULT_THREADS // max(1, running)))


def _check(config: DictConfig) -> None:
    check_reject(config.reject)
    if not 1 <= config.top_k <= 100:
        raise UserError(f"top_k={config.top_k} is invalid: give 1 to 100 products per page.", status=2)
    if not config.host:
        raise UserError("host= is empty: give 127.0.0.1 for this machine only, or 0.0.0.0 for the network.", status=2)
    if not 0 <= config.port <= 65535:
        raise UserError(f"port={config.port} is invalid: give 1 to 65535, or 0 for any free port.", status=2)
    check_choice(config, "samples", ("test", "catalogue"))
    check_choice(config, "backend", ("torch", "onnx"))
    limits = {f"limits.{name}": value for name, value in config.limits.items()}
    for name, value in {"refresh_seconds": config.refresh_seconds, **limits}.items():
        if value is None and name == "limits.requests_per_minute":
            continue
        if not (isinstance(value, int | float) and value > 0):
            raise UserError(f"{name}={value} is invalid: give a number above 0.", status=2)


def open_socket(host: str, port: int) -> socket.socket:
    """Open a socket at an address; the server begins to listen when it can answer.

    Args:
        host: name or IP address of this machine.
        port: TCP port; 0 for any free one.

    Raises:
        UserError: if the address does not exist or is in use.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"host={host} is not an address of this machine: give 127.0.0.1 for local use.") from error
    family, kind, protocol, _, address = addresses[0]
    # With an explicit protocol asyncio sets TCP_NODELAY; without it each response would take 40 ms longer.
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> UserError:
    reason = f"{error.strerror}".lower()
    return UserError(f"Cannot listen on host={host} port={port} ({reason}): choose another port or host.")


def main() -> None:
    """Run the command line."""
    run_command("serve", serve)


if __name__ == "__main__":
    main()
