"""What people name on the command lines of the search: a catalogue, and products."""

from collections.abc import Iterable
from pathlib import Path

from fashion_cnn.runs import Run


def catalogue_at(named: str | None, run: Run) -> str:
    """The address of the catalogue that a person named, or of the run's own."""
    if named is None:
        return str(run.catalogue)
    return named if "://" in named else str(Path(named).expanduser())


def listed(ids: object | None) -> tuple[str, ...]:
    """One value or several, as texts."""
    if ids is None:
        return ()
    return tuple(map(str, ids)) if isinstance(ids, Iterable) and not isinstance(ids, str) else (str(ids),)
