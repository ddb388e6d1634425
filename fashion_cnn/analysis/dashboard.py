"""`python -m fashion_cnn.analysis.dashboard --logdir runs`: TensorBoard that opens with the charts of overfitting.

It accepts all options of TensorBoard. Only the root address is redirected, to settings of the Time Series tab. A link
to another tab, such as `/#hparams`, opens that tab: browsers keep the part after the `#`.
"""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode

from absl import app
from tensorboard import default, main_lib, program
from tensorboard.plugins.base_plugin import FlagsError

from fashion_cnn.runs.run import BEST_EVENTS, OVERFITTING_EVENTS, SPLIT_EVENTS

# Charts at the top: is it overfitting, since when, and what does it cost?
_PINNED = ("gap/accuracy", "loss", "accuracy")
# One color for the train curves of all runs, one for validation, one for each mark; other runs have one color each.
_COLOR_GROUPS = f"^(?:.*/)?({'|'.join((*SPLIT_EVENTS, BEST_EVENTS, OVERFITTING_EVENTS))})$|^(.*)$"
_START_PAGE = "?" + urlencode(
    {
        "pinnedCards": json.dumps([{"plugin": "scalars", "tag": tag} for tag in _PINNED]),
        "runColorGroup": f"regex:{_COLOR_GROUPS}",
        # There is only one point per epoch.
        "smoothing": 0,
    }
)
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def redirect_root(application: WSGIApp) -> WSGIApp:
    """Wrap a WSGI application so that requests of `/` are redirected to the start page."""

    def redirecting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/" and not environ.get("QUERY_STRING"):
            start_response("302 Found", [("Location", _START_PAGE), ("Content-Length", "0")])
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
