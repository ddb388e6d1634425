"""The error that is for people: what was wrong, the value seen, what to do."""


class UserError(ValueError):
    """A mistake in a config, a file or a command line, told in one message.

    The commands print the message alone, with no traceback, and exit with `status`.
    """

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Pruned(Exception):  # noqa: N818 # no mistake of anyone's
    """A search ended a training that did worse than others."""
