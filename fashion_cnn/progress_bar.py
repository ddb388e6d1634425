"""How far long work is, on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, in a terminal only; gives what to call with the steps done and of all steps."""
    console = Console(stderr=True)
    columns, on_screen = Progress.get_default_columns(), console.is_terminal
    # Lines on the same terminal come above the bar; those that go to a file or pipe go there.
    with Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty(), disable=not on_screen) as bar:
        task = bar.add_task(label)
        yield lambda done, total: bar.update(task, completed=done, total=total)
