"""A sweep's directory: a sub-directory a job, and `multirun.yaml`, in which Hydra keeps what was typed."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fashion_cnn.errors import UserError
from fashion_cnn.runs import Run, newest_weights
from fashion_cnn.runs.overrides import LATEST_WEIGHTS, affects_training, override_key, quote_value, unquote_override
from fashion_cnn.sweeps.jobs import Job, choices_of, key_element, spelled_out

COMMAND_FILE = "multirun.yaml"


@dataclass(frozen=True)
class Sweep:
    """A sweep and its jobs, of which some have no directory yet."""

    path: Path
    jobs: tuple[Job, ...]

    @property
    def runs(self) -> list[Run]:
        """The jobs' directories, in the order of the jobs."""
        return [Run(self.path / job.name) for job in self.jobs]

    @property
    def begun(self) -> bool:
        """Whether any job has come so far as to have a directory."""
        return any(run.path.exists() for run in self.runs)

    def discard(self) -> None:
        """Remove what a sweep that came to no job leaves behind."""
        (self.path / COMMAND_FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def check_same_settings(self) -> None:
        """Raise UserError where a job's directory holds a run of other settings."""
        for job, run in zip(self.jobs, self.runs, strict=True):
            if not run.config_file.exists():
                continue
            has = _own(run.config().get("overrides") or [])
            # What a file of conf/sweep sets is missing from the overrides of older runs.
            if differing := sorted((has - _own(spelled_out(job.overrides))) | (_own(job.overrides) - has)):
                raise UserError(
                    f"{run.path} was trained with other settings ({', '.join(differing)} differ): "
                    "a resumed sweep repeats its own command. Leave resume=… out to start a new one.",
                    status=2,
                )


def _own(overrides: Iterable[str]) -> set[str]:
    return {unquote_override(one).rstrip("=") for one in overrides if affects_training(one)}


def with_weights_named(path: Path, task: Sequence[str], runs_dir: Path) -> list[str]:
    """The overrides of the sweep in `path`, `init_from=latest` replaced by the run that was the newest at its start.

    Else each job would start from the one before it. Raises UserError where there is no finished run.
    """
    if all(unquote_override(override) != LATEST_WEIGHTS for override in task):
        return [*task]
    begun: Any = OmegaConf.load(path / COMMAND_FILE) if (path / COMMAND_FILE).is_file() else None
    before = (
        [override for override in begun.hydra.overrides.task if override_key(override) == "init_from"] if begun else []
    )
    named = before[0] if before else f"init_from={quote_value(newest_weights(runs_dir))}"
    return [named if unquote_override(override) == LATEST_WEIGHTS else override for override in task]


def task_with_jobs_of_before(path: Path, task: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    """The overrides of a sweep that goes on in `path`: none of its jobs is lost where further values are typed.

    task, params: of the command line that resumes it, see `jobs_of`; a new sweep has these alone.
    Raises UserError where they would make other trainings of the jobs that are there.
    """
    if not (path / COMMAND_FILE).is_file():
        return [*task]
    begun: Any = OmegaConf.load(path / COMMAND_FILE).hydra
    before, now = choices_of(begun.overrides.task, begun.sweeper.get("params") or {}), choices_of(task, params)
    _check_only_more_values(path, before, now)
    typed = {key_element(override): override for override in task}
    for key in (key for key, values in before.items() if len(values) > 1):
        values = [*dict.fromkeys([*before[key], *now[key]])]
        if values != now[key]:
            typed[key] = f"{key}={','.join(values)}"
    # A job's name lists its settings in the order in which they were typed first.
    order = {key: place for place, key in enumerate(before)}
    return [typed[key] for key in sorted(typed, key=lambda key: order.get(key, len(order)))]


def _check_only_more_values(path: Path, before: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> None:
    differing = []
    for key in filter(affects_training, dict.fromkeys([*before, *now])):
        was, said = before.get(key, []), now.get(key, [])
        if said != was and (len(was) < 2 or not said):
            there, here = (",".join(values) or "as it stands" for values in (was, said))
            differing.append(f"{key}: {there} there, {here} here")
    if differing:
        raise UserError(
            f"{path} was begun with other settings ({'; '.join(differing)}): going on with it may add values to those "
            "that vary in it, and changes nothing else. Leave resume=… out to start a new one.",
            status=2,
        )


def resumed_sweep(arguments: Sequence[str]) -> list[str]:
    """The command line with which a sweep goes on: `resume=DIR` names it, beside its own `-m` command or alone.

    A command line that resumes no sweep stays as it is.
    """
    named = next((argument for argument in arguments if argument.startswith("resume=")), None)
    if named is None:
        return [*arguments]
    others = [argument for argument in arguments if argument != named]
    is_sweep = any(word in ("-m", "--multirun") or override_key(word) == "sweep" for word in others)
    runs_dir = next((word.partition("=")[2].strip("'\"") for word in others if word.startswith("runs_dir=")), "runs")
    reference = named.partition("=")[2].strip("'\"")
    sweep = _find_sweep(reference, Path(runs_dir).expanduser()) if is_sweep or reference != "latest" else None
    if sweep is None and is_sweep:
        raise UserError(
            f"{named}: there is no sweep there: name the directory of one, with its {COMMAND_FILE}.", status=2
        )
    if sweep is None:
        return [*arguments]
    return [*([] if is_sweep else _typed_before(sweep)), *others, f"hydra.sweep.dir={quote_value(str(sweep))}"]


def _find_sweep(reference: str, runs_dir: Path) -> Path | None:
    """The sweep that `reference` names, a directory or `latest`; None where it names something else."""
    if reference == "latest":
        sweeps = sorted(runs_dir.rglob(COMMAND_FILE), key=lambda file: file.stat().st_mtime)
        return sweeps[-1].parent if sweeps else None
    path = Path(reference).expanduser()
    return path if (path / COMMAND_FILE).is_file() else None


def _typed_before(path: Path) -> list[str]:
    """The arguments that began the sweep in `path`."""
    overrides: Any = OmegaConf.load(path / COMMAND_FILE).hydra.overrides
    return ["-m", *(o for o in overrides.hydra if not _is_pinned(o)), *overrides.task]


def pins(path: Path, shared: Sequence[str]) -> list[str]:
    """Overrides that tell each job, in whichever process it runs, where the sweep lies and what names it.

    shared: the keys that no job's name needs.
    """
    return [
        f"hydra.sweep.dir={quote_value(str(path))}",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quote_value, shared))}]",
    ]


def _is_pinned(override: str) -> bool:
    return override.startswith(("hydra.sweep.dir=", "hydra.job.config.override_dirname.", "hydra.mode="))
