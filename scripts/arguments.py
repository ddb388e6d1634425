"""`key=value` from the command line into a dataclass of options: its fields are the keys, their types the values'.

And what a script's door says where a person made a mistake, or had enough.
"""

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    with mistakes_told():
        main(parse(options, sys.argv[1:]))


@contextmanager
def mistakes_told(stopped: str = "Stopped. The same command goes on with what is missing.") -> Iterator[None]:
    """Exit with one message for a mistake of a person's, in a config of fashion_cnn's too, and with 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # Only here: a script without configs starts sooner.
        from fashion_cnn.cli.errors import describe_error, exit_with
        from fashion_cnn.cli.main import CONFIG_DIR

        # A library's own OSError, which no system call made, says in words what was wrong with a file.
        files = UserError(str(error)) if isinstance(error, OSError) else None
        if (mistake := describe_error(error, "train", str(CONFIG_DIR)) or files) is None:
            raise
        exit_with(str(mistake), mistake.status)


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
