"""Errors that end a command with a message, and helpers for the wording of messages."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a config, a file or a command line.

    The commands print the message without a traceback.

    Attributes:
        status: exit status of the command.
    """

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Pruned(Exception):  # noqa: N818 # not an error
    """A hyper-parameter search ended a training that was worse than others."""


class Interrupted(KeyboardInterrupt):
    """The user or the system stopped the command. The message says how to continue.

    Attributes:
        status: exit status of the command.
    """

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(message)
        self.status = status


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return " Did you mean …?" with the choices most similar to `word`, or an empty text.

    A choice is similar as a whole, or in the last part of its dotted key, as `optimizer.lr` to `lr`.
    """
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    near += [choice for choice in choices if choice.rpartition(".")[2] == word.rpartition(".")[2]]
    if not near:
        # Such as `trainer.max_epochs` for `epochs`.
        last = [choice.rpartition(".")[2] for choice in choices]
        nearest = difflib.get_close_matches(word.rpartition(".")[2], last, n=1, cutoff=0.7)
        near = [choice for choice, part in zip(choices, last, strict=True) if part in nearest]
    return f" Did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""


def pluralize(count: int, noun: str) -> str:
    """Return count and noun, such as `1 product` or `2,000 products`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
