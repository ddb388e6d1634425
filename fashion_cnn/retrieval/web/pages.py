"""The pages: templates, filters, a search and its results, a product, the developer's page, the API's page."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from fashion_cnn.inference.predictor import Answer
from fashion_cnn.pictures import Preparation
from fashion_cnn.retrieval.web.developer import histogram, measured
from fashion_cnn.retrieval.web.errors import Refused, no_product
from fashion_cnn.retrieval.web.openapi import operations
from fashion_cnn.retrieval.web.query import MOST_PAGES, MOST_PICTURES, Asked, carried, number
from fashion_cnn.retrieval.web.service import Answered, Desk, asked_of, prepared
from fashion_cnn.retrieval.web.state import Choice, Shop, Storefront
from fashion_cnn.retrieval.web.views import Shown, card, plainly, price, shown_tensor

_MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
UPDATE_NOTICE_SECONDS = 60
Asking = Annotated[Asked, Query()]
Id = Annotated[str, Query(max_length=1000)]
_MOST_SIMILAR = 12


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
        is_news = changed is not None and time.time() - changed < UPDATE_NOTICE_SECONDS
        rendered = self._templates.get_template(template).render(shop=self._shop, is_news=is_news, **values)
        return HTMLResponse(rendered, status)

    def static(self, name: str) -> Response:
        """A style sheet, script or icon. Raises Refused."""
        if name not in self._static:
            raise Refused(404, "There is no such file.")
        return Response(
            self._static[name],
            media_type=_MEDIA_TYPES[name.rpartition(".")[2]],
            headers={"cache-control": "max-age=300"},
        )


@dataclass(frozen=True)
class Box:
    """value: what the form sends. shown: what a person reads. products: that hold it."""

    value: str
    shown: str
    products: int
    ticked: bool


@dataclass(frozen=True)
class Boxes:
    """The values of a column; name: of the form's field."""

    heading: str
    name: str
    boxes: tuple[Box, ...]

    @property
    def ticked(self) -> int:
        return sum(box.ticked for box in self.boxes)


def filter_boxes(front: Storefront, asked: Asked) -> list[Boxes]:
    """Of the categories, and of each further column that holds a few values."""
    return [
        boxes
        for boxes in (
            _boxes(front.categories, "category", "", asked.category),
            *(_boxes(choice, "where", f"{choice.column}:", asked.where) for choice in front.choices),
        )
        if boxes.boxes
    ]


def without_a_box(asked: Asked, boxes: Sequence[Boxes]) -> list[tuple[str, str]]:
    """Field and value of each filter that no box stands for: a form has to send it along."""
    boxed = {(column.name, box.value) for column in boxes for box in column.boxes}
    wanted = [(name, value) for name in ("category", "where") for value in getattr(asked, name)]
    return [one for one in wanted if one not in boxed]


def _boxes(choice: Choice, name: str, prefix: str, asked: list[str]) -> Boxes:
    heading = choice.column.replace("_", " ").capitalize()
    boxes = (Box(f"{prefix}{value}", value, count, f"{prefix}{value}" in asked) for value, count in choice.values)
    return Boxes(heading, name, tuple(boxes))


def pages(desk: Desk, rendering: Rendering) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    render = rendering.page

    @router.get("/")
    async def search(asked: Asking) -> Response:
        front = desk.shop.open()
        answered = await desk.answer(front, asked)
        found = answered.found
        marks = {
            name: [card(hit, asked) for hit in await desk.workers.run(partial(front.searcher.fetch_by_id, ids))]
            for name, ids in (("like", asked.like), ("unlike", asked.unlike))
        }
        pages = min(-(-found.matching // desk.top_k), MOST_PAGES)
        filters = filter_boxes(front, asked)
        return render(
            "search.html",
            asked=asked,
            filters=filters,
            other_filters=without_a_box(asked, filters),
            prices=front.prices,
            cards=[card(hit, asked) for hit in found.hits],
            matching=found.matching,
            marks=marks,
            pictures=_pictures(asked, answered),
            samples=() if asked.anything else await desk.samples(front),
            has_more=found.matching > asked.page * desk.top_k and asked.page < pages,
        )

    @router.post("/")
    async def submit(request: Request) -> Response:
        front = desk.shop.open()
        async with desk.uploads.read(request) as form:
            asked = asked_of(form)
            files = form.files.get("picture", [])
            if len(files) > MOST_PICTURES:
                raise Refused(422, f"{len(files)} pictures are too many: {MOST_PICTURES} are the most at once.")
            preparation = front.searcher.network.preparation
            work = partial(_carried, files, preparation, desk.limits.pixels)
            # A new picture is a new search, among the same products.
            changes: dict[str, Any] = {"like": [], "unlike": [], "unlike_picture": []} if files else {}
            changes |= {"picture": await desk.workers.run(work)} if files else {}
        return RedirectResponse(asked.but(**changes).link(), status_code=303)

    @router.get("/product")
    async def product(id: Id, asked: Asking) -> Response:
        front = desk.shop.open()
        if id not in front.snapshot.row_by_id:
            raise no_product(id)
        (hit,) = await desk.workers.run(lambda: front.searcher.fetch_by_id([id]))
        similar = await desk.answer(front, Asked(like=[id]), top_k=_MOST_SIMILAR)
        return render(
            "product.html",
            asked=asked,
            card=card(hit, asked),
            cards=[card(each, asked) for each in similar.found.hits],
        )

    @router.get("/developer")
    async def developer() -> Response:
        front = desk.shop.open()
        projection = await desk.workers.run(lambda: front.projection)
        totals = desk.shop.latencies.totals()
        return render(
            "developer.html",
            front=front,
            projection=projection,
            bars=histogram(totals),
            searches=len(totals),
            percentiles=desk.shop.latencies.percentiles(),
            measures=measured(desk.shop.run),
        )

    @router.get("/api")
    async def api_page(request: Request) -> Response:
        return render("api.html", operations=operations(request.app.openapi()), base=str(request.base_url))

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        return rendering.static(name)

    return router


@dataclass(frozen=True)
class AskedPicture:
    """A picture that was searched for: is it to be like it, what the network says of it, the search without it."""

    is_like: bool
    picture: Shown
    said: Answer
    without: str


def _pictures(asked: Asked, answered: Answered) -> list[AskedPicture]:
    named = [("picture", text) for text in asked.picture] + [("unlike_picture", text) for text in asked.unlike_picture]
    tensors = (*answered.pictures, *answered.unlike_pictures)
    return [
        AskedPicture(name == "picture", shown_tensor(tensor), said, asked.without(name, text).link())
        for (name, text), tensor, said in zip(named, tensors, answered.said, strict=True)
    ]


def _carried(files: list[bytes], preparation: Preparation, most_pixels: int) -> list[str]:
    return [carried(picture) for picture in prepared(files, preparation, most_pixels)]
