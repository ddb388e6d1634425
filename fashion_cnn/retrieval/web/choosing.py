"""The filters of a search as boxes to tick."""

from collections.abc import Sequence
from dataclasses import dataclass

from fashion_cnn.retrieval.web.asked import Asked
from fashion_cnn.retrieval.web.storefront import Choice, Storefront


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
