"""Where runs lie, and which one a command means."""

import secrets
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from fashion_cnn.errors import UserError
from fashion_cnn.runs.files import as_typed
from fashion_cnn.runs.run import Run, State

# In the folder of a search.
STUDY_FILE = "study.db"


def choose_directory(runs_dir: Path, name: str) -> Run:
    """A new run in `runs_dir/name/<time>-<short id>`, still to be created."""
    return Run(runs_dir / name / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(3)}")


def find_all(runs_dir: Path) -> list[Run]:
    """All runs below `runs_dir`, at any depth, the oldest first."""
    runs = [Run(file.parent) for file in runs_dir.rglob("config.yaml") if _is_run_config(file)]
    return sorted(runs, key=lambda run: (run.started, run.path))


def _is_run_config(file: Path) -> bool:
    """Whether it says of itself what every run's does, or lies where a training was: others leave a config.yaml too."""
    if Run(file.parent).checkpoints.is_dir() or Run(file.parent).results_file.exists():
        return True
    try:
        return any(line.startswith("seed:") for line in file.read_text().splitlines())
    except (OSError, UnicodeDecodeError):
        return False


def find_finished(reference: str | Path | Iterable[str] | None, runs_dir: Path) -> Run:
    """The run that `reference` names: a directory, or `latest` for the newest finished one.

    Which one that is, and that a named one is not finished, is told on stderr. Raises UserError.
    """
    run = _find(reference, runs_dir)
    if run.state != "finished":
        print(f"{_not_finished(run)}.", file=sys.stderr)
    return run


def newest_weights(runs_dir: Path) -> str:
    """The path of the newest finished run, which `init_from=latest` means when it is typed. Raises UserError."""
    return str(find_finished("latest", runs_dir).path.resolve())


def find_measured(reference: str | Path | Iterable[str] | None, runs_dir: Path) -> Run:
    """As `find_finished`; a run that is still going, or was stopped, is none whose weights stand for it."""
    run = _find(reference, runs_dir)
    if run.state != "finished":
        raise UserError(f"{_not_finished(run)}.")
    return run


def _find(reference: str | Path | Iterable[str] | None, runs_dir: Path) -> Run:
    if reference is None:
        raise UserError("run=null names no run: give a run's directory, or latest.")
    if reference == "latest":
        return _newest(runs_dir, {"finished"}, "finished run")
    if not isinstance(reference, str | Path):
        raise UserError(f"run={reference} is not one run: give one run's directory, or latest.", status=2)
    run = _named(Path(reference), runs_dir)
    if damage := run.damage:
        raise damage
    return run


def _not_finished(run: Run) -> str:
    return f"{run.path} is not finished ({run.how_it_stands()}): its weights are not its last word"


def find_several(references: str | Iterable[str] | None, runs_dir: Path) -> list[Run]:
    """The runs that one reference or a list of them names, each as `find_measured` takes it. Raises UserError."""
    if references is None or isinstance(references, str):
        return [find_measured(references, runs_dir)]
    found = list({run.path.resolve(): run for run in (find_measured(one, runs_dir) for one in references)}.values())
    if not found:
        raise UserError("run=[] names no run: give a run's directory, or latest.")
    return found


def find_unfinished(reference: str | Path, runs_dir: Path) -> Run:
    """The run to resume: a directory, or `latest` for the newest unfinished one that nobody is training."""
    if reference == "latest":
        # What a search began goes on with the search.
        return _newest(runs_dir, {"stopped", "failed"}, "unfinished run", but_of_searches=True)
    run = _named(Path(reference), runs_dir)
    if run.state == "finished":
        raise UserError(
            f"{run.path} is finished: there is nothing to resume. "
            f"init_from={run.path} starts a new run from its weights."
        )
    return run


def _newest(runs_dir: Path, states: set[State], wanted: str, *, but_of_searches: bool = False) -> Run:
    for run in reversed(find_all(runs_dir)):
        left_out = but_of_searches and (run.path.parent / STUDY_FILE).is_file()
        if run.state in states and not left_out:
            print(f"The newest {wanted}: {as_typed(run.path)}", file=sys.stderr)
            return run
    raise UserError(f"There is no {wanted} in {runs_dir.resolve()}: name its directory, or say runs_dir=DIR.")


def _named(path: Path, runs_dir: Path) -> Run:
    run = Run(path.expanduser())
    if not run.config_file.is_file():
        if (run.path / STUDY_FILE).is_file():
            raise UserError(
                f"{run.path} is a search: it goes on when the python -m fashion_cnn.tune command that began it is "
                f"typed again (tune.study={run.path.resolve().name}); its trials are runs."
            )
        what = "is not a run: it holds no config.yaml" if run.path.exists() else "does not exist"
        newest = "".join(f"\n  {other.path}" for other in reversed(find_all(runs_dir)[-3:]))
        raise UserError(f"{run.path} {what}." + (f" The newest runs here:{newest}" if newest else ""))
    return run
