"""Command lines of the scripts: `key=value` arguments as a dataclass, and errors of the user as one message."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from fashion_cnn.errors import UserError, did_you_mean

Options = TypeVar("Options")
_CONVERTERS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "a word"),
    Path: (lambda text: Path(text).expanduser(), "a path"),
}


def run(main: Callable[[Options], None], options: type[Options], description: str) -> None:
    """Call `main` with the options on the command line; print the description for --help.

    Args:
        main: the script's work.
        options: dataclass whose fields are the keys, with defaults.
        description: the script's help text.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(description)
        return
    with user_errors_as_messages():
        main(parse(options, sys.argv[1:]))


@contextmanager
def user_errors_as_messages(stopped: str = "Stopped. Run the same command again to continue.") -> Iterator[None]:
    """Exit with one message after an error of the user, and with status 130 after Ctrl-C.

    Args:
        stopped: message after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # Imported late, so that scripts without configs start fast.
        from fashion_cnn.cli.errors import describe_error, exit_with
        from fashion_cnn.cli.main import CONFIG_DIR

        # The message of an OSError that a library raised describes what is wrong with a file.
        file_error = UserError(str(error)) if isinstance(error, OSError) else None
        if (user_error := describe_error(error, "train", str(CONFIG_DIR)) or file_error) is None:
            raise
        exit_with(str(user_error), user_error.status)


def parse(options: type[Options], arguments: Sequence[str]) -> Options:
    """Parse `key=value` arguments.

    Args:
        options: dataclass whose fields are the keys; it may raise UserError in `__post_init__`.
        arguments: the command line.

    Returns:
        The options, with defaults for missing keys.

    Raises:
        UserError: an unknown key, or a value of another type.
    """
    types = {name: _without_none(hint) for name, hint in get_type_hints(options).items()}
    names = [field.name for field in fields(options)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key not in names:
            hint = did_you_mean(key, names) or f" Options: {', '.join(names)}."
            raise UserError(f"unknown option '{key}'.{hint}", status=2)
        convert, type_name = _CONVERTERS[types[key]]
        try:
            values[key] = convert(text)
        except ValueError:
            text = ""
        if not equals or not text:
            raise UserError(f"{argument} is not possible: {key} takes {type_name}, as in {key}=VALUE.", status=2)
    return options(**values)


def _without_none(hint: Any) -> Any:
    """Return `int` for `int` and for `int | None`."""
    types = [kind for kind in get_args(hint) if kind is not type(None)]
    return types[0] if types else hint
