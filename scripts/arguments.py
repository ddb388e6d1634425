"""`key=value` from the command line into a dataclass of options: its fields are the keys, their types the values'."""

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from fashion_cnn.errors import UserError

Options = TypeVar("Options")
KINDS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "a word"),
    Path: (lambda typed: Path(typed).expanduser(), "a path"),
}


def run(main: Callable[[Options], None], options: type[Options], description: str) -> None:
    """Call `main` with the options typed; print the description for --help, and mistakes in one line."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(description)
        return
    try:
        main(parse(options, sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on with what is missing.", file=sys.stderr)
        sys.exit(130)


def parse(options: type[Options], words: Sequence[str]) -> Options:
    """The options with the defaults of those not typed. Raises UserError for an unknown key or a value of another type.

    What the dataclass's own __post_init__ refuses is a UserError too.
    """
    types = {name: _kind(hint) for name, hint in get_type_hints(options).items()}
    names = [field.name for field in fields(options)]  # type: ignore[arg-type]
    typed: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" There are {', '.join(names)}."
            raise UserError(f"{word}: no option is called {key}.{hint}", status=2)
        convert, what = KINDS[types[key]]
        try:
            typed[key] = convert(value)
        except ValueError:
            value = ""
        if not equals or not value:
            raise UserError(f"{word}: {key} wants {what}: say {key}=…", status=2)
    return options(**typed)


def _kind(hint: Any) -> Any:
    """`int` of `int` and of `int | None`."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if kinds else hint
