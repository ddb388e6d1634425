"""Errors that end a command with a message, and the words that messages share."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a config, a file or a command line, told in one message.

    The commands print the message alone, with no traceback, and exit with `status`.
    """

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Pruned(Exception):  # noqa: N818 # no mistake of anyone's
    """A search ended a training that did worse than others."""


class Interrupted(KeyboardInterrupt):
    """A person or the system stopped the command: what to type to go on, and the exit status."""

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(message)
        self.status = status


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A question, after a space, whether what is most like `word` was meant; nothing where nothing is like it."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    # Where only the last part of a dotted key is known: `lr` for `optimizer.lr`.
    near += [choice for choice in choices if choice.rpartition(".")[2] == word.rpartition(".")[2]]
    if not near:
        # `epochs` for `trainer.max_epochs`.
        last = [choice.rpartition(".")[2] for choice in choices]
        nearest = difflib.get_close_matches(word.rpartition(".")[2], last, n=1, cutoff=0.7)
        near = [choice for choice, part in zip(choices, last, strict=True) if part in nearest]
    return f" Did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""


def pluralize(number: int, thing: str) -> str:
    """`1 product`, `2,000 products`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
