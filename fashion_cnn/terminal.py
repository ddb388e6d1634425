"""Terminal output: consoles of the terminal's width, text and tables that fit into it, and a progress bar."""

import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fashion_cnn.errors import as_typed, printable

# Wider than any row of a table.
_UNLIMITED_WIDTH = 1_000_000
# Width to which a column of text is folded before other columns are left out; longer words stay whole, up to a limit.
_TEXT_WIDTH = 18
_MAX_WORD = 40
# Heading of columns of settings that are joined.
_SETTINGS = "settings"
# Seconds between lines about the progress in a log.
LOG_SECONDS = 30
# Least width of a column of text in a terminal that is too narrow for whole words.
_NARROWEST = 8


class _PlainConsole(Console):
    """A console that prints brackets, as in names of classes or folders, instead of interpreting them as markup."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__(width=width, markup=False, emoji=False)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print, with commands in the form that the user types."""
        super().print(*(as_typed(part) if isinstance(part, str) else part for part in objects), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render with the control characters of texts escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, which the command handles; rich's own method exits with status 1."""
        raise BrokenPipeError


def wide_console() -> Console:
    """Return a console of the terminal's width; output to a file or pipe is neither cut nor wrapped.

    The environment variable COLUMNS sets the width everywhere.
    """
    console = _PlainConsole()
    return console if console.is_terminal or "COLUMNS" in os.environ else _PlainConsole(width=_UNLIMITED_WIDTH)


def table_console() -> Console:
    """Return a console for tables: of the terminal's width or COLUMNS, and of 80 columns in a file or pipe."""
    return _PlainConsole()


def print_text(text: str, *, indent: str = "") -> None:
    """Print a text, in a terminal in lines that end between words; words wider than the terminal stay whole.

    Args:
        text: the text.
        indent: text before the following lines.
    """
    width = wide_console().width
    print(
        textwrap.fill(
            as_typed(printable(text)), width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    )


def json_text(value: Any) -> str:
    """Return JSON whose characters are escaped only if a terminal would obey some of them."""
    text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
    return text if printable(text) == text else json.dumps(value, indent=1, default=str)


@contextmanager
def progress_bar(label: str, *, transient: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error if it is a terminal, and print a line every 30 seconds if it is a log.

    Args:
        label: text before the bar.
        transient: whether the bar disappears at its end; there are no lines in a log then.

    Yields:
        A function that sets the number of completed steps and of all steps.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _ignore_progress if transient else _progress_lines(label)
        return
    # Output to the same terminal is printed above the bar; output to a file or pipe is not redirected.
    with Progress(console=console, transient=transient, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(label)
        yield lambda completed, total: bar.update(task, completed=completed, total=total)


def _ignore_progress(completed: int, total: int) -> None:
    pass


def _progress_lines(label: str) -> Callable[[int, int], None]:
    printed_at = time.monotonic()

    def update(completed: int, total: int) -> None:
        nonlocal printed_at
        now = time.monotonic()
        if now - printed_at >= LOG_SECONDS and total:
            printed_at = now
            print(f"{label}: {completed:,} of {total:,} ({completed / total:.0%})", file=sys.stderr, flush=True)

    return update


def print_table(
    headings: Iterable[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
    title: str | None = None,
    optional: Sequence[str] = (),
    hint: str = "",
    least_widths: Mapping[str, int] | None = None,
    settings: Sequence[str] = (),
    wide: bool = False,
) -> None:
    """Print a table of text cells, not wider than the terminal, whose lines end between words.

    Args:
        headings: names of the columns.
        rows: cells of each row.
        right: headings of the columns that are aligned to the right.
        title: text above the table.
        optional: headings of columns that are left out, the first one first, until the table fits. A line below it
            names them.
        hint: where else they are shown, for that line.
        least_widths: widths of columns of text, by heading, to which these are folded before others are left out.
        settings: headings of columns that are joined to a single one, of `heading=cell`, if the table does not fit.
        wide: whether the rows are neither wrapped nor cut in a file or pipe.
    """
    console = wide_console() if wide else table_console()
    # Escaped before the widths are computed.
    rows = [[printable(cell) for cell in row] for row in rows]
    headings = [*map(printable, headings)]
    columns = [
        _Column(
            heading,
            tuple(row[number] for row in rows),
            heading in right,
            (least_widths or {}).get(heading, _TEXT_WIDTH),
        )
        for number, heading in enumerate(headings)
    ]
    left_out = _columns_to_leave_out(columns, optional, console.width)
    if settings and _least_width(column for column in columns if column not in left_out) > console.width:
        columns = _join_settings(columns, settings)
        left_out = _columns_to_leave_out(columns, optional, console.width)
    shown = [column for column in columns if column not in left_out]
    table = Table(title=title, title_justify="left", show_lines=shown[0].heading == _SETTINGS)
    widths = _fit_widths(shown, console.width)
    for column, width in zip(shown, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        table.add_column(column.heading, justify=justify, overflow="fold", width=width)
    for row in zip(*(column.folded(width) for column, width in zip(shown, widths, strict=True)), strict=True):
        table.add_row(*map(Text, row))
    console.print(table)
    if left_out:
        names = ", ".join(column.heading for column in left_out)
        print_text(f"Left out to fit {console.width} columns: {names}. {hint}".rstrip())


@dataclass(frozen=True)
class _Column:
    heading: str
    cells: tuple[str, ...]
    is_number: bool
    text_width: int

    @property
    def full_width(self) -> int:
        """Width in which nothing is folded."""
        return max(cell_len(line) for cell in (self.heading, *self.cells) for line in cell.splitlines() or [""])

    @property
    def least_width(self) -> int:
        """Width to which the column may be folded: numbers stay whole, with an interval in brackets below."""
        if self.is_number:
            parts = [part for cell in self.folded(0) for part in cell.splitlines()]
            return max(map(cell_len, [*self.heading.split(), *parts]), default=0)
        words = [word for cell in (self.heading, *self.cells) for word in cell.split()]
        longest = min(max(map(cell_len, words), default=0), _MAX_WORD)
        return min(self.full_width, max(self.text_width, longest))

    def folded(self, width: int | None) -> tuple[str, ...]:
        """The cells in lines of a width; without one as they are."""
        if width is None or width >= self.full_width:
            return self.cells
        if self.is_number:
            return tuple(cell.replace(" (", "\n(") for cell in self.cells)
        return tuple(_fold(cell, width) for cell in self.cells)


def _join_settings(columns: Sequence[_Column], names: Sequence[str]) -> list[_Column]:
    """Replace columns by one with the heading and the cell of each, which is folded between them."""
    joined = [column for column in columns if column.heading in names]
    rows = zip(*(column.cells for column in joined), strict=True)
    names = [column.heading for column in joined]
    cells = tuple(" ".join(f"{name}={cell}" for name, cell in zip(names, row, strict=True)) for row in rows)
    others = [column for column in columns if column not in joined]
    return [_Column(_SETTINGS, cells, False, _TEXT_WIDTH), *others]


def _least_width(columns: Iterable[_Column]) -> int:
    """Return the least width of a table: each column has a border and a blank on both sides."""
    return 1 + sum(3 + column.least_width for column in columns)


def _fit_widths(columns: Sequence[_Column], total: int) -> list[int | None]:
    """Return the width of each column in a table of at most a total width.

    The space beside the least widths goes to the columns of text, then to the headings of numbers. In a terminal that
    is too narrow for whole words, the widest columns of text are narrower. If that is not enough, rich chooses the
    widths and folds everything.
    """
    space = total - _least_width(columns)
    widths = [column.least_width for column in columns]
    texts = [number for number, column in enumerate(columns) if not column.is_number]
    while space < 0:
        widest = max(texts, key=lambda number: widths[number], default=None)
        if widest is None or widths[widest] <= _NARROWEST:
            return [None] * len(columns)
        widths[widest] -= 1
        space += 1
    for number, column in sorted(enumerate(columns), key=lambda pair: pair[1].is_number):
        more = min(space, column.full_width - widths[number])
        space -= more
        widths[number] += more
    return [*widths]


def _columns_to_leave_out(columns: Sequence[_Column], optional: Iterable[str], width: int) -> list[_Column]:
    """Return the columns to leave out, of those with the headings `optional`, so that the others fit into the width."""
    left_out: list[_Column] = []
    for name in optional:
        if _least_width(column for column in columns if column not in left_out) <= width:
            break
        left_out += [column for column in columns if column.heading == name]
    return left_out


def _fold(text: str, width: int) -> str:
    """Fold lines between words, or between the parts of too long ones; the indentation of a line stays."""
    lines = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        current = indent
        for word in line.split():
            space = " " * bool(current.strip())
            if cell_len(current + space + word) <= width:
                current += space + word
                continue
            if current.strip():
                lines.append(current)
                current = indent
            for part in _parts(word, width - len(indent)):
                if current.strip() and cell_len(current + part) > width:
                    lines.append(current)
                    current = indent
                current += part
        lines.append(current)
    return "\n".join(lines)


def _parts(word: str, width: int) -> list[str]:
    """Split a word that is too long after each `/`, and parts that are too long after `_`, `+`, `=` or a comma."""
    parts = [word]
    for ends in ("/", "_+=,"):
        pattern = f"[^{ends}]*[{ends}]+|[^{ends}]+"
        parts = [new for part in parts for new in (re.findall(pattern, part) if cell_len(part) > width else [part])]
    return parts
