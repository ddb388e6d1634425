"""What is not done for a client, and why: an HTTP status and words that help."""

from collections.abc import Mapping


class Refused(Exception):  # noqa: N818 # it is an answer, as much as it is an error
    """status: of HTTP. message: for people, a whole sentence. headers: such as Retry-After."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


class Busy(Refused):
    """More is asked for at once than this machine does: come back in a second."""

    def __init__(self) -> None:
        super().__init__(503, "Too many searches at once: try again in a second.", {"Retry-After": "1"})


def no_product(one: str) -> Refused:
    return Refused(404, f"The catalogue holds no product “{one}”. It may have been taken out.")


class NoCatalogue(Refused):
    """Nothing has been indexed yet; once it has, the server finds it."""

    def __init__(self) -> None:
        super().__init__(
            503, "There is no catalogue yet: python -m fashion_cnn.index makes one.", {"Retry-After": "10"}
        )
