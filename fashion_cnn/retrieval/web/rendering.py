"""Templates into pages, and the few files that these load."""

import time
from importlib import resources
from typing import Any

import jinja2
from fastapi.responses import HTMLResponse, Response

from fashion_cnn.retrieval.web.asked import number
from fashion_cnn.retrieval.web.refusals import Refused
from fashion_cnn.retrieval.web.shop import Shop
from fashion_cnn.retrieval.web.shown import plainly, price

_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# So long a page says that the catalogue is another one now, in seconds.
_NEWS = 60


class Rendering:
    """Pages of a shop."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("fashion_cnn.retrieval.web"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"price": price, "plainly": plainly, "number": number, "clock": time.ctime}
        # Held in memory: no path that a client sends ever reaches the disk.
        folder = resources.files("fashion_cnn.retrieval.web") / "static"
        self._static = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        changed = self._shop.changed
        is_news = changed is not None and time.time() - changed < _NEWS
        rendered = self._templates.get_template(template).render(shop=self._shop, is_news=is_news, **values)
        return HTMLResponse(rendered, status)

    def static(self, name: str) -> Response:
        """A style sheet, script or icon. Raises Refused."""
        if name not in self._static:
            raise Refused(404, "There is no such file.")
        return Response(
            self._static[name],
            media_type=_TYPES[name.rpartition(".")[2]],
            headers={"cache-control": "max-age=300"},
        )
