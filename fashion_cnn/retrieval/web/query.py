"""A search as a link or a form carries it, its pictures included: the whole of it stands in the address."""

import base64
import io
from collections.abc import Mapping
from typing import Annotated, Any, Self
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.retrieval.filters import Condition, parse_conditions
from fashion_cnn.retrieval.products import encode_png, to_pil_image
from fashion_cnn.retrieval.web.errors import Refused

# Of base64; four such pictures still fit into what servers and browsers take as an address.
MOST_CHARACTERS = 12_000
_QUALITIES = (95, 85, 70)
MOST_PICTURES, MOST_MARKS, MOST_VALUES, MOST_PAGES = 4, 20, 50, 100
# In characters: what a proxy lets through as an address.
MOST_LINK = 64_000
Carried = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Id = Annotated[str, Field(max_length=1000)]
Value = Annotated[str, Field(max_length=500)]
Price = Annotated[float, Field(allow_inf_nan=False)]


def carried(picture: Tensor) -> str:
    """A prepared picture `(C, H, W)` uint8 as text for a link: exact, but for colourful ones of 64 pixels and more.

    Raises Refused where it would be too long for one.
    """
    image = to_pil_image(picture)
    for content in (encode_png(image), *(_webp(image, quality) for quality in _QUALITIES)):
        text = base64.urlsafe_b64encode(content).rstrip(b"=").decode()
        if len(text) <= MOST_CHARACTERS:
            return text
    raise Refused(
        413,
        "This network looks at pictures that are too large for a link: send the picture to the API, /api/search.",
    )


def _webp(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def uncarried(text: str, image_shape: tuple[int, int, int]) -> Tensor:
    """The picture `(C, H, W)` uint8 that a link carries. Raises Refused."""
    channels, height, width = image_shape
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG", "WEBP"]) as image:
            # Its size is known before a pixel is unpacked.
            if image.size == (width, height) and image.mode in ("L", "RGB"):
                pixels = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB")))
                return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
    except Exception:  # damaged files lead Pillow into errors of all kinds
        pass
    raise Refused(422, "The picture in this link is damaged, or for another network: choose the picture again.")


class Asked(BaseModel):
    """A search. Fields left empty, as forms send them, ask for nothing."""

    model_config = ConfigDict(frozen=True)

    picture: list[Carried] = Field(
        default=[], max_length=MOST_PICTURES, description="Pictures to be like, as links carry them"
    )
    unlike_picture: list[Carried] = Field(default=[], max_length=MOST_PICTURES, description="Pictures not to be like")
    like: list[Id] = Field(default=[], max_length=MOST_MARKS, description="Ids of products to be like")
    unlike: list[Id] = Field(default=[], max_length=MOST_MARKS, description="Ids of products not to be like")
    text: str = Field(default="", max_length=200, description="Words of the title, any of which is to be there")
    category: list[Value] = Field(default=[], max_length=MOST_VALUES, description="Only of these categories")
    price_min: Price | None = Field(default=None, description="The least price")
    price_max: Price | None = Field(default=None, description="The highest price")
    where: list[Value] = Field(
        default=[],
        max_length=MOST_VALUES,
        description="COLUMN:VALUE, only where a column of the shop's own holds it; COLUMN:LOW..HIGH, either left out, "
        "of numbers and dates",
    )
    page: int = Field(default=1, ge=1, le=MOST_PAGES, description="Which page of the results")

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        lists = {
            name: [one for one in value if one != ""] if isinstance(value, list) else value
            for name, value in given.items()
        }
        return {name: value for name, value in lists.items() if value not in ("", [])}

    @property
    def looks(self) -> bool:
        """Whether pictures or products say what the results are to be like."""
        return bool(self.picture or self.unlike_picture or self.like or self.unlike)

    @property
    def filters(self) -> bool:
        return bool(self.category or self.where or self.price_min is not None or self.price_max is not None)

    @property
    def anything(self) -> bool:
        return self.looks or self.filters or bool(self.text.strip())

    def pairs(self) -> list[tuple[str, str]]:
        """The names and values of a link or a form, without what is not asked for."""
        found = []
        for name, value in self.model_dump(exclude_defaults=True).items():
            values = value if isinstance(value, list) else [value]
            found += [(name, number(one) if isinstance(one, float) else str(one)) for one in values]
        return found

    def link(self, path: str = "/", **more: str) -> str:
        """The address of this search; more: further parameters, which come first."""
        query = urlencode([*more.items(), *self.pairs()])
        return f"{path}?{query}" if query else path

    def marked(self, *, like: str | None = None, unlike: str | None = None) -> Self:
        """The same with one more product to be like, or not to be like; the newest mark on a product counts."""
        new = like if like is not None else unlike
        kept = {name: [one for one in getattr(self, name) if one != new] for name in ("like", "unlike")}
        kept["like"] += [] if like is None else [like]
        kept["unlike"] += [] if unlike is None else [unlike]
        return self.but(**{name: ids[-MOST_MARKS:] for name, ids in kept.items()})

    def without(self, name: str, value: str | None = None) -> Self:
        """The same without one value of a field, or without the field."""
        left = [one for one in getattr(self, name) if one != value] if value is not None else None
        return self.but(**{name: left or type(self).model_fields[name].get_default()})

    def but(self, **changes: Any) -> Self:
        """Another search begins at its first page."""
        return self.model_copy(update={"page": 1, **changes})

    def conditions(self, schema: pa.Schema) -> tuple[Condition, ...]:
        """Of a catalogue with these columns. Raises Refused for a column that is not there."""
        described: dict[str, Any] = {}
        ranges: list[dict[str, Any]] = []
        for one in self.where:
            column, colon, value = one.partition(":")
            if not colon:
                raise Refused(422, f"where={one} names no value: say COLUMN:VALUE.")
            low, dots, high = value.partition("..")
            if dots and column in schema.names and _is_ordered(schema.field(column).type):
                ranges.append({column: {"min": low or None, "max": high or None}})
            else:
                described.setdefault(column, []).append(value)
        try:
            return (
                *parse_conditions({"category": self.category}, schema),
                *parse_conditions({"price": {"min": self.price_min, "max": self.price_max}}, schema),
                *parse_conditions(described, schema),
                *(condition for one in ranges for condition in parse_conditions(one, schema)),
            )
        except UserError as error:
            raise Refused(422, str(error)) from error


def _is_ordered(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)


def number(value: float | None) -> str:
    """As a person would type it, `10` and `9.5`; nothing where there is none."""
    return "" if value is None else str(int(value) if value.is_integer() else value)
