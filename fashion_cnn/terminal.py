"""Output in a terminal: a console of the right width, and a progress bar."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

# Wider than any row: tables take of it what they need.
_ENDLESS = 1_000_000


class _PlainConsole(Console):
    """Text is shown as it is: brackets in the name of a class or a folder are no markup. What to do where nobody reads
    any more is left to the command's door; rich's own exits with 1.
    """

    def __init__(self, width: int | None = None) -> None:
        super().__init__(width=width, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def wide_console() -> Console:
    """The terminal as wide as it is; in a file or pipe nothing is cut or wrapped."""
    console = _PlainConsole()
    return console if console.is_terminal else _PlainConsole(width=_ENDLESS)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, in a terminal only; gives what to call with the steps done and of all steps."""
    console = Console(stderr=True)
    columns, on_screen = Progress.get_default_columns(), console.is_terminal
    # Lines on the same terminal come above the bar; those that go to a file or pipe go there.
    with Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty(), disable=not on_screen) as bar:
        task = bar.add_task(label)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_table(
    headings: Iterable[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), title: str | None = None
) -> None:
    """Print a table of text cells.

    Args:
        headings: names of the columns.
        rows: cells of each row.
        right: headings of the columns that are aligned to the right.
        title: text above the table.
    """
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    wide_console().print(table)
