"""`python -m fashion_cnn.analysis.dashboard --logdir runs`: TensorBoard that opens at the charts of the gap.

It accepts all options of TensorBoard. Only the root address is redirected, to the custom scalars.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from absl import app
from tensorboard import default, main_lib, program
from tensorboard.plugins.base_plugin import FlagsError

# Smoothing is off, since there is only one point per epoch.
_GAP_PAGE = "?open=gap#custom_scalars&_smoothingWeight=0"
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def redirect_root(application: WSGIApp) -> WSGIApp:
    """Wrap a WSGI application so that requests of `/` are redirected to the charts of the gap."""

    def redirecting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/" and not environ.get("QUERY_STRING"):
            start_response("302 Found", [("Location", _GAP_PAGE), ("Content-Length", "0")])
            return []
        return application(environ, start_response)

    return redirecting


def _serve(application: WSGIApp, flags: Any) -> Any:
    return program.create_port_scanning_werkzeug_server(redirect_root(application), flags)


def main() -> None:
    """Run TensorBoard."""
    main_lib.global_init()
    tensorboard = program.TensorBoard(plugins=default.get_plugins(), server_class=_serve)
    try:
        app.run(tensorboard.main, flags_parser=tensorboard.configure)
    except FlagsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
