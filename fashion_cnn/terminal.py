"""Terminal output: a console without line wrapping in files, and a progress bar."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

# Wider than any row of a table.
_UNLIMITED_WIDTH = 1_000_000


class _PlainConsole(Console):
    """A console that prints brackets, as in names of classes or folders, instead of interpreting them as markup."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__(width=width, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, which the command handles; rich's own method exits with status 1."""
        raise BrokenPipeError


def wide_console() -> Console:
    """Return a console of the terminal's width; output to a file or pipe is neither cut nor wrapped."""
    console = _PlainConsole()
    return console if console.is_terminal else _PlainConsole(width=_UNLIMITED_WIDTH)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error if it is a terminal.

    Yields:
        A function that sets the number of completed steps and of all steps.
    """
    console = Console(stderr=True)
    # Output to the same terminal is printed above the bar; output to a file or pipe is not redirected.
    with Progress(console=console, redirect_stdout=sys.stdout.isatty(), disable=not console.is_terminal) as bar:
        task = bar.add_task(label)
        yield lambda completed, total: bar.update(task, completed=completed, total=total)


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
