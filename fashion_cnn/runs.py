"""The run directory: the one place that knows its file names, where runs lie and how each one stands.

`python -m fashion_cnn.runs` lists them.
"""

import fcntl
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from fashion_cnn.errors import UserError
from fashion_cnn.run_files import DamagedRunError, check_settings, read_figures, read_settings

# In the folder of a search.
STUDY_FILE = "study.db"

State = Literal["finished", "running", "failed", "pruned", "stopped", "damaged"]


@dataclass(frozen=True)
class Run:
    """One run's directory. It is a run as soon as it holds `config.yaml`."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """The weights that were best on validation."""
        return self.checkpoints / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        """The state after the last finished epoch, to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def weights(self) -> Path:
        """The checkpoint that stands for the run: the best on validation, or the last where there is none."""
        return self.best_checkpoint if self.best_checkpoint.exists() else self.last_checkpoint

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def results_file(self) -> Path:
        return self.path / "results.json"

    @property
    def report_file(self) -> Path:
        return self.path / "report.md"

    @property
    def model_card_file(self) -> Path:
        """What the network is for, what it cannot do, and how it was made."""
        return self.path / "model_card.md"

    @property
    def export(self) -> Path:
        """The folder of what `python -m fashion_cnn.export` made."""
        return self.path / "export"

    @property
    def catalogue(self) -> Path:
        """The products that `python -m fashion_cnn.index` looked at with this network."""
        return self.path / "catalogue"

    @property
    def concepts(self) -> Path:
        """What `python -m fashion_cnn.teach` taught this network."""
        return self.path / "concepts"

    @property
    def figures(self) -> Path:
        """The folder of the report's figures."""
        return self.path / "figures"

    @property
    def predictions_file(self) -> Path:
        """What the network said of each image of train probe, validation and test."""
        return self.path / "predictions.npz"

    @property
    def examples_file(self) -> Path:
        """How each training image was learned."""
        return self.path / "examples.csv"

    @property
    def ambiguous_file(self) -> Path:
        """The validation and test images, the one that the network is least decided on first."""
        return self.path / "ambiguous.csv"

    @property
    def evaluation(self) -> Path:
        """The folder of what `python -m fashion_cnn.evaluate` found, a sub-folder a split."""
        return self.path / "evaluation"

    @property
    def search_evaluation(self) -> Path:
        """The folder of what `python -m fashion_cnn.evaluate_search` found, a sub-folder a split."""
        return self.path / "search_evaluation"

    @property
    def error_file(self) -> Path:
        """Why the run failed, or that a search pruned it; absent where neither is so."""
        return self.path / "error.txt"

    @property
    def state(self) -> State:
        if self.damage is not None:
            return "damaged"
        if self.results_file.exists():
            return "finished"
        if self._is_locked():
            return "running"
        if not self.error_file.exists():
            return "stopped"
        return "pruned" if self.error_file.read_text().startswith("pruned") else "failed"

    def how_it_stands(self) -> str:
        """The state, with the reason where it failed or what of it is damaged."""
        state = self.state
        if damage := self.damage:
            return f"{state} ({as_typed(damage.file)}: {damage.reason})"
        reason = self.error_file.read_text().strip().splitlines() if state in ("failed", "pruned") else []
        return f"{state} ({reason[0]})" if reason else state

    @property
    def started(self) -> float:
        """Seconds since 1970 when the run began, which no later command changes."""
        return self.config_file.stat().st_mtime

    def create(self) -> None:
        """Make the directory. Raises UserError where it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock_file.touch()
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): choose another directory with runs_dir=DIR."
            ) from error

    @property
    def damage(self) -> DamagedRunError | None:
        """What cannot be read of it."""
        try:
            check_settings(self.config_file)
            read_figures(self.results_file)
        except FileNotFoundError:
            return None
        except DamagedRunError as error:
            return error
        return None

    def config(self) -> DictConfig:
        """The settings. Raises UserError where they are damaged."""
        return read_settings(self.config_file)

    def results(self) -> dict[str, Any]:
        """The figures of a finished run; an unfinished one has none, `{}`. Raises UserError where they are damaged."""
        return read_figures(self.results_file)

    def write_config(self, config: DictConfig) -> None:
        write_whole(self.config_file, OmegaConf.to_yaml(config))

    def write_results(self, results: dict[str, Any]) -> None:
        """Write last of all: its presence says that the run ended well."""
        self.error_file.unlink(missing_ok=True)
        write_whole(self.results_file, json.dumps(results, indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process, so that it shows as running and nobody else resumes it."""
        with self._lock_file.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path} is being trained by another process.") from None
            yield

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"

    def _is_locked(self) -> bool:
        try:
            with self._lock_file.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False


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


def as_typed(path: Path) -> Path:
    """The path as a person would type it: from here where it lies below, else in full."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def write_whole(path: Path, text: str) -> None:
    """Write `text` so that `path` holds the old content or the new, never half of it."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
    Path(partial).replace(path)


def _list(config: DictConfig) -> None:
    from rich.table import Table

    from fashion_cnn.screen import wide_console

    runs = find_all(Path(config.runs_dir))
    if not runs:
        raise UserError(f"There are no runs in {Path(config.runs_dir).resolve()}: say runs_dir=DIR.")
    table = Table()
    for heading in ("name", "run", "state", "seed", "test", "val", "gap", "time"):
        justify: Literal["left", "right"] = "right" if heading in ("test", "val", "gap", "time", "seed") else "left"
        # A path that is cut cannot be copied.
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading not in ("name", "run"))
    for run in runs:
        if run.state == "damaged":
            table.add_row("", os.path.relpath(run.path, config.runs_dir), "damaged")
            continue
        results = run.results()
        settings = run.config()
        table.add_row(
            str(settings.get("name")),
            os.path.relpath(run.path, config.runs_dir),
            run.state,
            str(settings.get("seed")),
            *(f"{results[name]:.2%}" if name in results else "" for name in ("test/accuracy", "val/accuracy")),
            f"{results['gap/accuracy'] * 100:+.2f}" if "gap/accuracy" in results else "",
            f"{results['seconds'] / 60:.1f} min" if "seconds" in results else "",
        )
    wide_console().print(table)


def main() -> None:
    from fashion_cnn.command_line import run_command

    run_command("runs", _list)


if __name__ == "__main__":
    main()
