"""What people name on the command lines of the search: a catalogue, its run, and products."""

from collections.abc import Iterable
from pathlib import Path

from fashion_cnn.errors import UserError
from fashion_cnn.retrieval.about import about_of
from fashion_cnn.retrieval.catalogue import Catalogue
from fashion_cnn.runs import Run, find_indexed, find_measured


def catalogue_at(named: str | None, run: Run) -> str:
    """The address of the catalogue that a person named, or of the run's own. Raises UserError for an empty one."""
    return str(run.catalogue) if named is None else _address(named)


def _address(named: str) -> str:
    if not named:
        raise UserError(
            "catalogue= names nothing: say catalogue=DIR, a folder or an object store's address, or leave it out.",
            status=2,
        )
    return named if "://" in named else str(Path(named).expanduser())


def run_and_catalogue(run: str | None, catalogue: str | None, runs_dir: Path) -> tuple[Run, Catalogue]:
    """The run that searches, and the catalogue that it searches in.

    run: None is the one that made the catalogue, or where none is named the newest one that has a catalogue.
    Raises UserError where there is no such run, or the catalogue's name is empty.
    """
    if catalogue is None:
        found = find_indexed(runs_dir) if run is None else find_measured(run, runs_dir)
        return found, Catalogue(str(found.catalogue))
    there = Catalogue(_address(catalogue))
    if run is None:
        run = about_of(there.open()).run if there.exists() else "latest"
    return find_measured(run, runs_dir), there


def listed(ids: object | None) -> tuple[str, ...]:
    """One value or several, as texts."""
    if ids is None:
        return ()
    return tuple(map(str, ids)) if isinstance(ids, Iterable) and not isinstance(ids, str) else (str(ids),)
