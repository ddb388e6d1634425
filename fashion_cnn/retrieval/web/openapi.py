"""OpenAPI descriptions: responses, error responses, the upload form, and the list of operations on the page /api."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fashion_cnn.retrieval.web.query import MAX_PICTURES, MAX_QUERIES, SearchQuery

_ERROR_DESCRIPTIONS = {
    400: "The form cannot be read",
    401: "No valid API key",
    403: "Sent by a page of another website, or by a client that may not change products",
    404: "Product not found",
    408: "The request took too long to arrive",
    413: "Too many bytes or pixels",
    415: "Not a form, or not a picture that can be decoded in time",
    422: "Invalid value of a parameter",
    429: "Too many requests of this client: see Retry-After",
    503: "No catalogue yet, or too many requests: see Retry-After",
}


class ErrorResponse(BaseModel):
    """Why a request was refused."""

    error: str
    status: int


class ProductRecord(BaseModel):
    """A product; the custom columns of the catalogue are further fields."""

    model_config = ConfigDict(extra="allow")

    id: str
    title: str
    category: str
    price: float | None
    similarity: Annotated[float | None, Field(description="Cosine with the query, null in a list that has no example")]
    seen_as: Annotated[str | None, Field(description="Class that the network predicts")]
    confidence: Annotated[float | None, Field(description="Probability of this class")]
    thumbnail: Annotated[str, Field(description="Address of the picture")]


class ClassProbability(BaseModel):
    """A class that a query picture may show."""

    model_config = ConfigDict(populate_by_name=True)

    name: Annotated[str, Field(alias="class")]
    probability: float


class TaughtConcept(BaseModel):
    """A taught concept that a query picture may show."""

    concept: str
    score: float


class QueryPicture(BaseModel):
    """Classes and concepts that the network sees on a picture of the query."""

    answer: str | None
    classes: list[ClassProbability]
    taught: list[TaughtConcept]
    item_found: Annotated[
        bool | None,
        Field(
            description="Whether an item stands out from the background of a photograph; if not, its middle square or "
            "its box was searched. null if the network does not look for one"
        ),
    ]


class SearchResponse(BaseModel):
    """The results of a search."""

    version: Annotated[int, Field(description="Version of the catalogue")]
    matching: Annotated[int, Field(description="Products that match the filters and words")]
    with_all_words: Annotated[int | None, Field(description="Those that have all words; null without words")]
    words: Annotated[str | None, Field(description="Words that were searched for; null without any")]
    colours: Annotated[
        list[str],
        Field(
            description="Colours that the text names, as in `dress in blue`: they filter by main_colour, beside those "
            "in where, and are not among the words. A colour in quotes is a word"
        ),
    ]
    page: int
    link: Annotated[str | None, Field(description="Page with the same results; null if it would be too long")]
    pictures: list[QueryPicture]
    hits: list[ProductRecord]
    milliseconds: dict[str, float]


class BatchAnswer(BaseModel):
    """The answer to one search of several: its results, or why it was refused."""

    status: Annotated[int, Field(description="What the search would get as a request of its own")]
    error: str | None
    result: SearchResponse | None


class BatchResponse(BaseModel):
    """The answers to several searches, in their order."""

    answers: list[BatchAnswer]


class PictureItem(BaseModel):
    """One of several items in a photograph."""

    box: Annotated[str, Field(description="Its part of the photograph, to send as box of a search")]


class ItemsResponse(BaseModel):
    """The items in a photograph that do not touch each other, the largest first; empty if there is only one or none."""

    items: list[PictureItem]


class ProductChange(BaseModel):
    """A product that was added, changed or removed."""

    id: str
    version: Annotated[int, Field(description="Version of the catalogue with the change")]
    created: Annotated[bool, Field(description="Whether the product is new")]


class ApproximateSearch(BaseModel):
    """How an approximate search was measured."""

    model_config = ConfigDict(extra="allow")

    recall: float


class StageLatency(BaseModel):
    """Durations of a stage of recent searches in milliseconds."""

    searches: int
    p50: float
    p95: float


class StatusResponse(BaseModel):
    """The catalogue that is searched; null where there is none yet."""

    run: Annotated[str, Field(description="Name of the run whose network made the catalogue")]
    version: int | None
    products: int | None
    class_weight: float | None
    approximate: ApproximateSearch | None
    problem: Annotated[str | None, Field(description="Why the newest version, or its concepts, cannot be loaded")]
    probabilities_calibrated: bool
    confidence_calibrated: bool | None
    milliseconds: dict[str, StageLatency]


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route: these, and those of all routes for API keys and the limit of requests."""
    return {
        status: {"description": _ERROR_DESCRIPTIONS[status], "model": ErrorResponse}
        for status in sorted({401, 429, *statuses})
    }


def upload_form(top_k: dict[str, Any]) -> dict[str, Any]:
    """Return the request body of a search by picture files: the fields of a `SearchQuery`, where pictures are files.

    Args:
        top_k: JSON schema of the page size.
    """
    files = {"type": "array", "maxItems": MAX_PICTURES, "items": {"type": "string", "format": "binary"}}
    properties = SearchQuery.model_json_schema()["properties"] | {
        "top_k": top_k,
        "picture": files | {"description": "Similar to these picture files"},
        "unlike_picture": files | {"description": "Not similar to these picture files"},
        "box": {
            "type": "array",
            "maxItems": MAX_PICTURES,
            "items": {"type": "string"},
            "description": "For each file of picture, in their order, the part that counts: LEFT,TOP,RIGHT,BOTTOM in "
            "shares of its width and height from 0 to 1; empty for the whole picture",
        },
    }
    schema = {"type": "object", "properties": properties}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def batch_form() -> dict[str, Any]:
    """Return the request body of several searches: their parameters as JSON, and the picture files that they name."""
    properties = {
        "queries": {
            "type": "string",
            "contentMediaType": "application/json",
            "description": f"JSON array of up to {MAX_QUERIES} objects with the parameters of GET, and in picture_file "
            "and unlike_picture_file the names of the fields that hold picture files",
        }
    }
    files = {"type": "string", "format": "binary"}
    schema = {"type": "object", "required": ["queries"], "properties": properties, "additionalProperties": files}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def picture_form() -> dict[str, Any]:
    """Return the request body with one picture file."""
    picture = {"type": "string", "format": "binary", "description": "A picture file"}
    schema = {"type": "object", "required": ["picture"], "properties": {"picture": picture}}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def product_form() -> dict[str, Any]:
    """Return the request body of a changed product: a form with its picture and columns, or the columns as JSON."""
    columns: dict[str, dict[str, Any]] = {
        "title": {"type": "string", "description": "By default the id"},
        "category": {"type": "string", "description": "By default the class that the network predicts"},
        "price": {"type": "number", "description": "Its price"},
    }
    picture = {"type": "string", "format": "binary", "description": "Its picture file; a new product needs one"}
    form = {"type": "object", "properties": {"picture": picture} | columns, "additionalProperties": True}
    nullable = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in columns.items()}
    json_object = {"type": "object", "properties": nullable, "additionalProperties": True}
    contents = {"multipart/form-data": {"schema": form}, "application/json": {"schema": json_object}}
    return {"required": True, "content": contents}


def operations(openapi: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the operations of an OpenAPI document: path, method, and one list of parameters and form fields."""
    return [
        {
            "description": "",
            **operation,
            "path": path,
            "method": method.upper(),
            "parameters": [*_parameters(operation)],
        }
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]


def _parameters(operation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for parameter in operation.get("parameters", ()):
        yield {"description": "", **parameter, "type": _type_name(parameter["schema"])}
    # A body of several types has the same fields in each.
    for content in [*operation.get("requestBody", {}).get("content", {}).values()][:1]:
        for name, schema in content["schema"]["properties"].items():
            yield {"description": "", "required": False, **schema, "name": name, "type": _type_name(schema)}


def _type_name(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return _type_name(schema["anyOf"][0])
    if schema["type"] == "array":
        items = "file" if schema["items"].get("format") == "binary" else schema["items"]["type"]
        return f"{items}, up to {schema['maxItems']} times"
    return str(schema["type"])
