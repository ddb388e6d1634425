"""The pages: a search and its results, a product, the developer's, and what the API offers."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from fashion_cnn.pictures import Preparation
from fashion_cnn.prediction import Answer
from fashion_cnn.retrieval.web.answering import Answered, prepared
from fashion_cnn.retrieval.web.asked import MOST_PAGES, MOST_PICTURES, Asked
from fashion_cnn.retrieval.web.carried import carried
from fashion_cnn.retrieval.web.charts import histogram
from fashion_cnn.retrieval.web.choosing import filter_boxes, without_a_box
from fashion_cnn.retrieval.web.described import operations
from fashion_cnn.retrieval.web.desk import Desk, asked_of
from fashion_cnn.retrieval.web.measured import measured
from fashion_cnn.retrieval.web.refusals import Refused, no_product
from fashion_cnn.retrieval.web.rendering import Rendering
from fashion_cnn.retrieval.web.shown import Shown, card, shown_tensor

Asking = Annotated[Asked, Query()]
Id = Annotated[str, Query(max_length=1000)]
_SIMILAR = 12


def pages(desk: Desk, rendering: Rendering) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    render = rendering.page

    @router.get("/")
    async def search(asked: Asking) -> Response:
        front = desk.shop.open()
        answered = await desk.answer(front, asked)
        found = answered.found
        marks = {
            name: [card(hit, asked) for hit in await desk.workers.run(partial(front.searcher.named, ids))]
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
        if id not in front.snapshot.row_of:
            raise no_product(id)
        (hit,) = await desk.workers.run(lambda: front.searcher.named([id]))
        similar = await desk.answer(front, Asked(like=[id]), top_k=_SIMILAR)
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
    tensors = (*answered.pictures, *answered.other_pictures)
    return [
        AskedPicture(name == "picture", shown_tensor(tensor), said, asked.without(name, text).link())
        for (name, text), tensor, said in zip(named, tensors, answered.said, strict=True)
    ]


def _carried(files: list[bytes], preparation: Preparation, most_pixels: int) -> list[str]:
    return [carried(picture) for picture in prepared(files, preparation, most_pixels)]
