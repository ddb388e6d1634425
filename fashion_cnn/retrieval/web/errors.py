"""HTTP errors of the search: a status code and a message for people."""

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from fashion_cnn.errors import as_typed


class HTTPError(HTTPException):
    """A request that is refused; `detail` is a whole sentence, shown on an error page or as JSON."""


def describe_invalid(error: RequestValidationError) -> str:
    """Name the first invalid value of a request."""
    first = error.errors()[0]
    name = next((str(part) for part in first["loc"] if part not in ("query", "body", "path")), "query")
    return f"Invalid value of {name}: {first['msg']}."


class BusyError(HTTPError):
    """More requests at once than the server accepts."""

    def __init__(self) -> None:
        super().__init__(503, "Too many searches at once: try again in a second.", {"Retry-After": "1"})


class NoCatalogueError(HTTPError):
    """Nothing is indexed yet; the server looks again every few seconds."""

    def __init__(self) -> None:
        super().__init__(
            503,
            as_typed("There is no catalogue yet: create it with python -m fashion_cnn.index."),
            {"Retry-After": "10"},
        )


class ReadOnlyError(HTTPError):
    """The server, or the client's API key, may not change products."""

    def __init__(self, *, is_writable: bool) -> None:
        super().__init__(
            403,
            "This API key may not change products: in the file of the keys, write follows one that may."
            if is_writable
            else "This server does not change products: start it with writable=true.",
        )


class UnknownProductError(HTTPError):
    """The catalogue has no product with this id."""

    def __init__(self, product_id: str) -> None:
        super().__init__(404, f"The catalogue has no product “{product_id}”. It may have been removed.")
