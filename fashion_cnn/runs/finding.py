"""List runs, and find the run that a command line names."""

import hashlib
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fashion_cnn.errors import UserError
from fashion_cnn.runs.damage import MAX_CONFIG_BYTES, read_text
from fashion_cnn.runs.files import display_path
from fashion_cnn.runs.pretrained import PREFIX, is_copy, pretrained_names, pretrained_run
from fashion_cnn.runs.run import STUDY_FILE, TIME_FORMAT, Run, State

# A directory of `new_run`, and the files that it may hold before its config.
_NEW_RUN = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-[0-9a-f]{6}")
_FIRST_FILES = {".lock", "error.txt", "training_images.npy"}


def new_run(runs_dir: Path, name: str) -> Run:
    """Return a run in `runs_dir/name/<time>-<short id>`, a directory that is not created yet."""
    return Run(runs_dir / name / f"{time.strftime(TIME_FORMAT)}-{secrets.token_hex(3)}")


def run_id(directory: Path) -> str:
    """Return the last six characters of a directory that `new_run` has named, and the name of any other."""
    name = directory.resolve().name
    return name[-6:] if _NEW_RUN.fullmatch(name) else name


def short_name(directory: Path, name: str) -> str:
    """Return a name that tells runs apart by its first six characters: `1313a2 tiny` for `tiny/<time>-1313a2`.

    A directory that was not named by `new_run`, such as that of a sweep's job, has a digest of its path in their place.
    """
    path = directory.resolve()
    if _NEW_RUN.fullmatch(path.name):
        return f"{run_id(path)} {name}"
    return f"{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:6]} {path.name}"


def list_runs(directory: Path, *states: State) -> list[Run]:
    """List the runs below a directory, at any depth, oldest first.

    Args:
        directory: it need not exist, and may be a run itself.
        states: list only the runs in one of these states; without any, all runs.
    """
    runs = map(Run, _run_folders(directory))
    chosen = (run for run in runs if not states or run.state in states)
    return sorted(chosen, key=lambda run: (run.started, run.modified, run.path))


def _run_folders(directory: Path) -> Iterator[Path]:
    """Yield the directories of runs: also those whose config is damaged, missing or not written yet."""
    for parent, folders, files in os.walk(directory):
        folder, names = Path(parent), {*folders, *files}
        has_content = bool(names & {"checkpoints", "results.json"})
        if "config.yaml" in names:
            is_run = ".lock" in names or has_content or _is_run_config(folder)
        elif has_content:
            is_run = ".lock" in names
        else:
            is_run = bool(_NEW_RUN.fullmatch(folder.name)) and _is_empty(folders, files)
        if is_run:
            yield folder


def _is_empty(folders: Sequence[str], files: Sequence[str]) -> bool:
    return not folders and all(name in _FIRST_FILES or name.endswith(".partial") for name in files)


def _is_run_config(folder: Path) -> bool:
    """Tell a run's `config.yaml` from that of another program."""
    try:
        lines = read_text(Run(folder).config_file, MAX_CONFIG_BYTES).splitlines()
    except (OSError, ValueError):
        return False
    return any(line.startswith("seed:") for line in lines)


def find_runs(references: str | Iterable[str]) -> list[Run]:
    """Find runs, each once.

    Args:
        references: folders, which are searched at any depth, and glob patterns.

    Raises:
        UserError: if there is no run in one of them.
    """
    runs: dict[Path, Run] = {}
    for reference in [references] if isinstance(references, str) else references:
        path = Path(reference).expanduser()
        folders = [path] if path.exists() else sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
        matches = {run.path.resolve(): run for folder in folders for run in list_runs(folder)}
        if not matches:
            raise UserError(f"no run in {reference}: give a folder of runs, a glob such as 'runs/small/*', or a list.")
        runs |= matches
    return list(runs.values())


def common_folder(runs: Iterable[Run]) -> Path:
    """Return the deepest folder that holds the directories of all runs, an absolute path."""
    return Path(os.path.commonpath([run.path.absolute().parent for run in runs]))


def find_run(reference: str | Path | Iterable[str] | None, runs_dir: Path) -> Run:
    """Return the run that `reference` names, with a warning on standard error if it is not finished.

    Args:
        reference: a run directory, or `latest` for the finished run that was started last, trials of a search aside;
            its path is then printed; or `pretrained:NAME` for a trained network that comes with the package.
        runs_dir: the directory that `latest` searches, and where a network of the package is copied to.

    Raises:
        UserError: if there is no such run, or its files are damaged.
    """
    run = _resolve(reference, runs_dir)
    if run.state != "finished":
        print(f"{_not_finished(run)}.", file=sys.stderr)
    return run


def find_finished_run(reference: str | Path | Iterable[str] | None, runs_dir: Path) -> Run:
    """Return the run that `reference` names, as `find_run`, but raise UserError if it is not finished."""
    run = _resolve(reference, runs_dir)
    if run.state != "finished":
        raise UserError(f"{_not_finished(run)}.")
    return run


def find_finished_runs(references: str | Iterable[str] | None, runs_dir: Path) -> list[Run]:
    """Return the runs that one reference or several name, each once; see `find_finished_run`."""
    if references is None or isinstance(references, str):
        return [find_finished_run(references, runs_dir)]
    runs = [find_finished_run(reference, runs_dir) for reference in references]
    if not runs:
        raise UserError("run=[] names no run: give a run directory, or latest.")
    return list({run.path.resolve(): run for run in runs}.values())


def find_unfinished_run(reference: str | Path, runs_dir: Path) -> Run:
    """Return the run to resume.

    Args:
        reference: a run directory, or `latest` for the newest unfinished run that no process is training.
        runs_dir: the directory that `latest` searches.

    Raises:
        UserError: if there is no such run, or it is finished, or `latest` is given and a newer run is finished.
    """
    if reference == "latest":
        _check_newest_is_unfinished(runs_dir)
        return _newest(runs_dir, {"stopped", "failed"}, "unfinished run")
    run = _named(Path(reference), runs_dir)
    if run.state == "finished":
        raise UserError(
            f"{run.path} is finished, there is nothing to resume. init_from={run.path} trains a new run from its "
            "weights."
        )
    return run


def _check_newest_is_unfinished(runs_dir: Path) -> None:
    """Raise UserError if a finished run is newer than all unfinished ones: `latest` may mean that one."""
    runs = [run for run in list_runs(runs_dir, "finished", "stopped", "failed") if not run.is_trial]
    unfinished = [run for run in runs if run.state != "finished"]
    if unfinished and runs[-1].state == "finished":
        raise UserError(
            f"The newest run, {display_path(runs[-1].path)}, is finished. To continue an older one, name it:\n"
            f"  python -m fashion_cnn.train resume={shlex.quote(str(display_path(unfinished[-1].path)))}"
        )


def newest_weights(runs_dir: Path) -> str:
    """Return the path of the newest finished run, the value of `init_from=latest`. Raises UserError."""
    return str(find_run("latest", runs_dir).path.resolve())


def _resolve(reference: str | Path | Iterable[str] | None, runs_dir: Path) -> Run:
    if reference is None:
        raise UserError("run=null names no run: give a run directory, or latest.")
    if reference == "latest":
        return _newest(runs_dir, {"finished"}, "finished run")
    if not isinstance(reference, str | Path):
        raise UserError(f"run={reference} is not one run: give one run directory, or latest.", status=2)
    if str(reference).startswith(PREFIX):
        return pretrained_run(str(reference).removeprefix(PREFIX), runs_dir)
    run = _named(Path(reference), runs_dir)
    if damage := run.damage:
        raise damage
    return run


def _not_finished(run: Run) -> str:
    return f"{run.path} is not finished ({run.describe_state()}): its weights are not final"


def _newest(runs_dir: Path, states: set[State], description: str) -> Run:
    """Return the run in one of the states that was started last, and print its path.

    Trials of a search are left out, and networks of the package, which the user has not trained.
    """
    trials = False
    for run in reversed(list_runs(runs_dir)):
        if run.state not in states or run.keeps_only_logits or is_copy(run, runs_dir):
            continue
        if not run.is_trial:
            print(f"The newest {description}: {display_path(run.path)}", file=sys.stderr)
            return run
        # Trials are resumed by their search, and most have poor settings.
        trials = True
    aside = ", trials of searches aside" if trials else ""
    packaged = " or ".join(f"run={PREFIX}{name}" for name in pretrained_names()) if states == {"finished"} else ""
    instead = f", or take a network of the package, {packaged}" if packaged else ""
    raise UserError(
        f"There is no {description} in {runs_dir.resolve()}{aside}: give its directory, or runs_dir=DIR{instead}."
    )


def _named(path: Path, runs_dir: Path) -> Run:
    run = Run(path.expanduser())
    if run.config_file.is_file():
        return run
    if (run.path / STUDY_FILE).is_file():
        raise UserError(
            f"{run.path} is a search; its trials are runs. To continue it, repeat its command, "
            f"python -m fashion_cnn.tune … tune.study={run.path.resolve().name}."
        )
    if run.damage or run in list_runs(run.path):
        problem = "is empty: its training was stopped before its settings were stored"
        raise run.damage or UserError(f"{run.path} {problem}. Delete it, and start again.")
    problem = "is not a run: it holds no config.yaml" if run.path.exists() else "does not exist"
    states = ((other, other.state) for other in reversed(list_runs(runs_dir)[-3:]))
    newest = "".join(f"\n  {other.path}{'' if state == 'finished' else f' ({state})'}" for other, state in states)
    raise UserError(f"{run.path} {problem}." + (f" The newest runs:{newest}" if newest else ""))
