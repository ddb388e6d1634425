"""`python -m fashion_cnn.analysis.dashboard --logdir runs`: TensorBoard, opening at the train/val gap.

All of TensorBoard's own options hold. Only the address without a path is sent on, to the page of custom scalars.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from absl import app
from tensorboard import default, main_lib, program
from tensorboard.plugins.base_plugin import FlagsError

# Unsmoothed: a point an epoch is what was measured.
_PAGE = "?open=gap#custom_scalars&_smoothingWeight=0"
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def opening_at_the_gap(application: WSGIApp) -> WSGIApp:
    """Send a browser that asks for `/` to the custom scalars; anything else goes to `application`."""

    def redirecting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/" and not environ.get("QUERY_STRING"):
            start_response("302 Found", [("Location", _PAGE), ("Content-Length", "0")])
            return []
        return application(environ, start_response)

    return redirecting


def _serve(application: WSGIApp, flags: Any) -> Any:
    return program.create_port_scanning_werkzeug_server(opening_at_the_gap(application), flags)


def main() -> None:
    main_lib.global_init()
    tensorboard = program.TensorBoard(plugins=default.get_plugins(), server_class=_serve)
    try:
        app.run(tensorboard.main, flags_parser=tensorboard.configure)
    except FlagsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
