"""OpenAPI descriptions: error responses, the upload form, and the list of operations on the page /api."""

from collections.abc import Iterator, Mapping
from typing import Any

from fashion_cnn.retrieval.web.query import MAX_PICTURES, SearchQuery

_ERROR_DESCRIPTIONS = {
    400: "The form cannot be read",
    403: "Sent by a page of another website",
    404: "Product not found",
    413: "Too many bytes or pixels",
    415: "Not a form, or not a picture that can be decoded in time",
    422: "Invalid value of a parameter",
    503: "No catalogue yet, or too many requests: see Retry-After",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Descriptions of a route's error responses."""
    example = {"application/json": {"example": {"error": "Description of the error.", "status": 422}}}
    return {status: {"description": _ERROR_DESCRIPTIONS[status], "content": example} for status in statuses}


def upload_form(top_k: dict[str, Any]) -> dict[str, Any]:
    """The request body of a search by picture files: the fields of a `SearchQuery`, where pictures are files.

    Args:
        top_k: JSON schema of the page size.
    """
    files = {"type": "array", "maxItems": MAX_PICTURES, "items": {"type": "string", "format": "binary"}}
    properties = SearchQuery.model_json_schema()["properties"] | {
        "top_k": top_k,
        "picture": files | {"description": "Similar to these picture files"},
        "unlike_picture": files | {"description": "Not similar to these picture files"},
    }
    schema = {"type": "object", "properties": properties}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def operations(openapi: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The operations of an OpenAPI document, each with its path, method, and parameters and form fields in one list."""
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
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for name, schema in content["schema"]["properties"].items():
            yield {"description": "", "required": False, **schema, "name": name, "type": _type_name(schema)}


def _type_name(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return _type_name(schema["anyOf"][0])
    if schema["type"] == "array":
        items = "file" if schema["items"].get("format") == "binary" else schema["items"]["type"]
        return f"{items}, up to {schema['maxItems']} times"
    return str(schema["type"])
