"""The parameters of a search as a link or a form sends them; pictures are part of the link."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
from fastapi.exceptions import RequestValidationError
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from fashion_cnn.errors import UserError
from fashion_cnn.pictures import Box, parse_box
from fashion_cnn.retrieval.filters import Condition, parse_conditions
from fashion_cnn.retrieval.products import encode_png, to_pil_image
from fashion_cnn.retrieval.web.errors import HTTPError

# Maximum length of a picture as base64 text; servers and browsers accept addresses with four of them.
MAX_PICTURE_LENGTH = 12_000
_WEBP_QUALITIES = (95, 85, 70, 50, 25, 5)
MAX_PICTURES, MAX_MARKS, MAX_VALUES, MAX_PAGES = 4, 20, 50, 100
# Maximum number of searches in one request.
MAX_QUERIES = 20
# Maximum length of a link, in characters; proxies usually accept 64 KB.
MAX_LINK_LENGTH = 64_000
EncodedPicture = Annotated[str, Field(max_length=MAX_PICTURE_LENGTH)]
ProductId = Annotated[str, Field(max_length=1000)]
Value = Annotated[str, Field(max_length=500)]
Price = Annotated[float, Field(allow_inf_nan=False)]
Validated = TypeVar("Validated")


def encode_picture(picture: ArrayLike) -> str:
    """Encode a prepared picture as URL-safe base64 text for a link.

    The text holds a PNG file, which is exact, or where that is too long (most colour pictures of 64 x 64 pixels and
    more) a WebP file.

    Args:
        picture: `(C, H, W)` uint8.

    Raises:
        HTTPError: if even a WebP file of low quality is too long.
    """
    image = to_pil_image(picture)
    for content in (encode_png(image), *(_webp(image, quality) for quality in _WEBP_QUALITIES)):
        text = base64.urlsafe_b64encode(content).rstrip(b"=").decode()
        if len(text) <= MAX_PICTURE_LENGTH:
            return text
    raise HTTPError(413, "The model's input pictures are too large for a link: send the picture to /api/search.")


def _webp(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def decode_picture(text: str, image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decode a picture of a link.

    Args:
        text: as `encode_picture` returns it.
        image_shape: the network's input shape `(C, H, W)`.

    Returns:
        The picture `(C, H, W)` uint8.

    Raises:
        HTTPError: if the text is damaged or the picture has another size.
    """
    channels, height, width = image_shape
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG", "WEBP"]) as image:
            # The size is checked before pixels are decompressed.
            if image.size == (width, height) and image.mode in ("L", "RGB"):
                pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
                return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    except Exception:  # damaged files raise errors of all kinds in Pillow
        pass
    raise HTTPError(422, "The picture in this link is damaged or belongs to another model: choose the picture again.")


class SearchQuery(BaseModel):
    """The parameters of a search. Empty fields, which HTML forms send, count as absent."""

    model_config = ConfigDict(frozen=True)

    picture: list[EncodedPicture] = Field(
        default=[], max_length=MAX_PICTURES, description="Similar to these pictures, encoded as in the links of pages"
    )
    unlike_picture: list[EncodedPicture] = Field(
        default=[], max_length=MAX_PICTURES, description="Not similar to these pictures"
    )
    like: list[ProductId] = Field(
        default=[], max_length=MAX_MARKS, description="Similar to the products with these ids"
    )
    unlike: list[ProductId] = Field(
        default=[], max_length=MAX_MARKS, description="Not similar to the products with these ids"
    )
    concept: list[Value] = Field(
        default=[], max_length=MAX_VALUES, description="Similar to these concepts, which `fashion_cnn.teach` taught"
    )
    text: str = Field(
        default="",
        max_length=200,
        description="Words, at least one of which a product has; products with all come first. A colour, as in "
        "`dress in blue`, filters by main_colour if the catalogue has this column; in quotes it is a word",
    )
    category: list[Value] = Field(default=[], max_length=MAX_VALUES, description="Only products of these categories")
    price_min: Price | None = Field(default=None, description="Minimum price")
    price_max: Price | None = Field(default=None, description="Maximum price")
    where: list[Value] = Field(
        default=[],
        max_length=MAX_VALUES,
        description="Filter on another column of the catalogue: COLUMN:VALUE, or COLUMN:LOW..HIGH for numbers and "
        "dates, where either end may be left out",
    )
    page: int = Field(default=1, ge=1, le=MAX_PAGES, description="Page of the results, starting at 1")

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        lists = {
            name: [item for item in value if item != ""] if isinstance(value, list) else value
            for name, value in values.items()
        }
        return {name: value for name, value in lists.items() if value not in ("", [])}

    @classmethod
    def from_form(cls, fields: Mapping[str, list[str]]) -> Self:
        """Parse the text fields of a form.

        Raises:
            RequestValidationError: as FastAPI raises it for the parameters of a link.
        """
        lists = {name for name, field in cls.model_fields.items() if field.get_default() == []}
        values = {name: texts if name in lists else texts[-1] for name, texts in fields.items()}
        return validate(TypeAdapter(cls), values)

    @property
    def is_visual(self) -> bool:
        """True if results are ranked by similarity to pictures, products or concepts."""
        return bool(self.picture or self.unlike_picture or self.like or self.unlike or self.concept)

    @property
    def has_filters(self) -> bool:
        """True if products are filtered by category, price or another column."""
        return bool(self.category or self.where or self.price_min is not None or self.price_max is not None)

    @property
    def is_empty(self) -> bool:
        """True if the query matches all products."""
        return not (self.is_visual or self.has_filters or self.text.strip())

    def pairs(self) -> list[tuple[str, str]]:
        """Return the names and values of a link or a form, without defaults."""
        return [
            (name, format_number(item) if isinstance(item, float) else str(item))
            for name, value in self.model_dump(exclude_defaults=True).items()
            for item in (value if isinstance(value, list) else [value])
        ]

    def link(self, path: str = "/", **parameters: str) -> str:
        """Return the address of this search below `path`; further parameters come first."""
        query = urlencode([*parameters.items(), *self.pairs()])
        return f"{path}?{query}" if query else path

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, from its first page on."""
        return self.model_copy(update={"page": 1, **changes})

    def mark(self, field: str, product_id: str) -> Self:
        """Return a copy with one more product in `like` or `unlike`; an earlier mark on the product is dropped."""
        marks = {name: [other for other in getattr(self, name) if other != product_id] for name in ("like", "unlike")}
        marks[field] = [*marks[field], product_id][-MAX_MARKS:]
        return self.replace(**marks)

    def without(self, field: str, value: str | None = None) -> Self:
        """Return a copy without one value of a field, or without the whole field."""
        values = [] if value is None else [item for item in getattr(self, field) if item != value]
        return self.replace(**{field: values or type(self).model_fields[field].get_default()})

    def conditions(self, schema: pa.Schema) -> tuple[Condition, ...]:
        """Return the filters as conditions on the columns of a catalogue.

        Raises:
            HTTPError: if a column does not exist or a value does not have its type.
        """
        values: dict[str, Any] = {}
        ranges: list[dict[str, Any]] = []
        for text in self.where:
            column, colon, value = text.partition(":")
            if not colon:
                raise HTTPError(422, f"where={text} has no value: write COLUMN:VALUE.")
            low, dots, high = value.partition("..")
            if dots and column in schema.names and _is_ordered(schema.field(column).type):
                ranges.append({column: {"min": low or None, "max": high or None}})
            else:
                values.setdefault(column, []).append(value)
        price = {"price": {"min": self.price_min, "max": self.price_max}}
        try:
            described: tuple[dict[str, Any], ...] = ({"category": self.category}, price, values, *ranges)
            return tuple(condition for columns in described for condition in parse_conditions(columns, schema))
        except UserError as error:
            raise HTTPError(422, str(error)) from error


def _is_ordered(column_type: pa.DataType) -> bool:
    return pa.types.is_integer(column_type) or pa.types.is_floating(column_type) or pa.types.is_temporal(column_type)


def validate(adapter: TypeAdapter[Validated], value: Any, *location: str) -> Validated:
    """Validate a form's value.

    Args:
        adapter: the type.
        value: what the form sent.
        location: name of the field, for the error message; models add the names of their fields.

    Raises:
        RequestValidationError: as FastAPI raises it for the parameters of a link.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": (*location, *each["loc"])} for each in error.errors()]) from error


def as_texts(name: str, value: Any) -> list[str]:
    """Return a text, a number, or a list of these as the texts that a form would send.

    Raises:
        HTTPError: for anything else.
    """
    values = value if isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise HTTPError(422, f"Invalid value of {name}: give a text, a number, or a list of these.")
    return [str(each) for each in values]


def parse_boxes(texts: Sequence[str], files: int) -> list[Box | None]:
    """Parse the parts of uploaded pictures.

    Args:
        texts: a box for each file, `LEFT,TOP,RIGHT,BOTTOM`, or an empty text for the whole picture; the last files may
            have none.
        files: number of uploaded pictures.

    Returns:
        A box or None for each file.

    Raises:
        HTTPError: if a text is no box, or there are more of them than files.
    """
    if len(texts) > files:
        raise HTTPError(422, f"{len(texts)} values of box for {files} picture files: send one for each file.")
    try:
        boxes = [parse_box(text.split(",")) if text.strip() else None for text in texts]
    except UserError as error:
        raise HTTPError(422, str(error)) from error
    return boxes + [None] * (files - len(texts))


def format_number(value: float | None) -> str:
    """Format a number as a person would type it, such as `10` and `9.5`; None becomes an empty string."""
    return "" if value is None else str(int(value) if value.is_integer() else value)
