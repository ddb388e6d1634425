"""The API's own description, OpenAPI, as a page lists it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str
    about: str
    needed: bool


@dataclass(frozen=True)
class Operation:
    """answers: what each status means."""

    name: str
    method: str
    path: str
    summary: str
    about: str
    parameters: tuple[Parameter, ...]
    answers: tuple[tuple[str, str], ...]


def operations(openapi: Mapping[str, Any]) -> list[Operation]:
    """What a description offers."""
    return [
        Operation(
            name=one["operationId"],
            method=method.upper(),
            path=path,
            summary=one["summary"],
            about=one.get("description", ""),
            parameters=(*map(_parameter, one.get("parameters", ())), *_fields(one)),
            answers=tuple((status, answer["description"]) for status, answer in sorted(one["responses"].items())),
        )
        for path, methods in openapi["paths"].items()
        for method, one in methods.items()
    ]


def _parameter(one: Mapping[str, Any]) -> Parameter:
    return Parameter(one["name"], _kind(one["schema"]), one.get("description", ""), one["required"])


def _fields(operation: Mapping[str, Any]) -> Iterator[Parameter]:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for name, schema in content["schema"]["properties"].items():
            yield Parameter(name, _kind(schema), schema.get("description", ""), needed=False)


def _kind(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return _kind(schema["anyOf"][0])
    if schema["type"] == "array":
        inner = "file" if schema["items"].get("format") == "binary" else schema["items"]["type"]
        return f"{inner}, up to {schema['maxItems']} times"
    return str(schema["type"])
