"""A sweep's directory: one sub-directory per job, and `multirun.yaml`, in which Hydra stores the command line."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion_cnn.errors import UserError, printable
from fashion_cnn.runs import Run, newest_weights
from fashion_cnn.runs.damage import MAX_CONFIG_BYTES, DamagedRunError, check_yaml, read_text
from fashion_cnn.runs.overrides import (
    LATEST_WEIGHTS,
    QUOTED_KEYS,
    affects_training,
    config_flags,
    override_key,
    quote_value,
    split_flags,
    unquote_override,
)
from fashion_cnn.runs.trust import check_classes, trust_packages
from fashion_cnn.sweeps.jobs import Job, expand_sweep, key_element, list_choices

COMMAND_FILE = "multirun.yaml"
# Characters in the overrides of a sweep, 10,000 values at most; Hydra's parser takes a second for 10,000 of them.
_MAX_COMMAND_LENGTH = 60_000
# Settings of a launcher that are names; all others that a stored command may set are numbers.
_LAUNCHER_NAMES = ("partition", "account", "qos", "gres", "constraint")


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        path: its directory.
        jobs: all of its jobs; those that have not started have no directory yet.
        flags: arguments that name config files of the user, see `config_flags`.
    """

    path: Path
    jobs: tuple[Job, ...]
    flags: tuple[str, ...] = ()

    @property
    def runs(self) -> list[Run]:
        """The run directories of the jobs, in the order of the jobs."""
        return [Run(self.path / job.name) for job in self.jobs]

    @property
    def has_started(self) -> bool:
        """True if any job has a directory."""
        return any(run.path.exists() for run in self.runs)

    def discard(self) -> None:
        """Remove the files of a sweep that started no job."""
        (self.path / COMMAND_FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def check_same_settings(self) -> None:
        """Raise UserError if the directory of a job holds a run with other settings."""
        for job, run in zip(self.jobs, self.runs, strict=True):
            if not run.config_file.exists():
                continue
            # Unresolved: an override may refer to the seed.
            stored = _training_overrides(OmegaConf.to_container(run.config()).get("overrides") or [])  # type: ignore[union-attr]
            # Runs of older versions do not store the overrides of a file in conf/sweep.
            surplus = stored - _training_overrides(expand_sweep(job.overrides))
            if differing := sorted(surplus | (_training_overrides(job.overrides) - stored)):
                raise UserError(
                    f"{run.path} was trained with other settings ({', '.join(differing)} differ): "
                    "a resumed sweep repeats its own command. Leave out resume= to start a new sweep.",
                    status=2,
                )


def _training_overrides(overrides: Iterable[str]) -> set[str]:
    return {unquote_override(override).rstrip("=") for override in overrides if affects_training(override)}


def resolve_latest_weights(path: Path, task: Sequence[str], runs_dir: Path) -> list[str]:
    """Replace `init_from=latest` by the run that was the newest at the start of the sweep.

    Otherwise each job would start from the weights of the job before it.

    Args:
        path: the sweep's directory.
        task: the overrides on its command line.
        runs_dir: the folder of the runs.

    Raises:
        UserError: there is no finished run.
    """
    if all(unquote_override(override) != LATEST_WEIGHTS for override in task):
        return [*task]
    command = _read_command(path) if (path / COMMAND_FILE).is_file() else None
    at_start = [override for override in command.task if override_key(override) == "init_from"] if command else []
    if command:
        command.check(at_start)
    resolved = at_start[0] if at_start else f"init_from={quote_value(newest_weights(runs_dir))}"
    return [resolved if unquote_override(override) == LATEST_WEIGHTS else override for override in task]


def add_earlier_values(path: Path, task: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    """Add the values of a resumed sweep to its new command line, so that it keeps its jobs.

    Args:
        path: the sweep's directory; a new sweep has no command file in it yet.
        task: the overrides on the command line, see `list_jobs`.
        params: `hydra.sweeper.params`.

    Returns:
        The overrides that make the jobs that exist and those for further values.

    Raises:
        UserError: the command line would change the settings of jobs that exist, or the sweep holds a value that a
            stored command may not set and that the command line does not repeat.
    """
    if not (path / COMMAND_FILE).is_file():
        return [*task]
    current = list_choices(task, params)
    stored = _read_command(path)
    # Packages trusted then are not trusted now.
    earlier = {key: values for key, values in stored.choices.items() if override_key(key) != "trust"}
    stored.check(_single_values(earlier), typed=_single_values(current))
    _check_only_added_values(path, earlier, current)
    merged = {key_element(override): override for override in task}
    for key in (key for key, values in earlier.items() if len(values) > 1):
        # Settings of the machine, such as threads, may be missing on the new command line.
        values = [*dict.fromkeys([*earlier[key], *current.get(key, ())])]
        if values != current.get(key):
            merged[key] = f"{key}={','.join(values)}"
    # A job's name lists its settings in the order of the first command line.
    order = {key: position for position, key in enumerate(earlier)}
    return [merged[key] for key in sorted(merged, key=lambda key: order.get(key, len(order)))]


def _check_only_added_values(path: Path, earlier: Mapping[str, list[str]], current: Mapping[str, list[str]]) -> None:
    differing = []
    for key in filter(affects_training, dict.fromkeys([*earlier, *current])):
        before, now = earlier.get(key, []), current.get(key, [])
        if now != before and (len(before) < 2 or not now):
            differing.append(f"{key}: {','.join(before) or 'default'} there, {','.join(now) or 'default'} here")
    if differing:
        raise UserError(
            f"{path} was started with other settings ({'; '.join(differing)}): a resumed sweep may only add values "
            "to those that it varies. Leave out resume= to start a new sweep.",
            status=2,
        )


def resumed_sweep(arguments: Sequence[str], default_runs_dir: str = "runs") -> list[str]:
    """Return the command line that continues the sweep named by `resume=DIR`, alone or with its own `-m` command.

    A command line that resumes no sweep is returned unchanged.

    Args:
        arguments: the command line.
        default_runs_dir: the folder in which `resume=latest` looks for sweeps unless `runs_dir` is typed.
    """
    resume = next((argument for argument in arguments if argument.startswith("resume=")), None)
    if resume is None:
        return [*arguments]
    flags, others = split_flags([argument for argument in arguments if argument != resume])
    is_sweep = bool({"-m", "--multirun"} & set(flags)) or any(override_key(argument) == "sweep" for argument in others)
    runs_dirs = [argument.partition("=")[2].strip("'\"") for argument in others if argument.startswith("runs_dir=")]
    runs_dir = runs_dirs[0] if runs_dirs else default_runs_dir
    reference = resume.partition("=")[2].strip("'\"")
    sweep = _find_sweep(reference, Path(runs_dir).expanduser()) if is_sweep or reference != "latest" else None
    if sweep is None and is_sweep:
        raise UserError(
            f"{resume} is no sweep: give the directory of a sweep, which contains {COMMAND_FILE}.", status=2
        )
    if sweep is None:
        return [*arguments]
    # The stored overrides are checked before the command is composed.
    for argument in others:
        if override_key(argument) == "trust":
            trust_packages(argument.partition("=")[2].strip("[]'\""))
    stored = _read_command(sweep)
    own_files = [flag for flag in stored.flags if "=" not in flag]
    if own_files and not {"--config-dir", "-cd", "--config-name", "-cn"} & set(flags):
        raise UserError(
            f"{sweep / COMMAND_FILE} names config files of its own: if you trust them, add {shlex.join(own_files)}",
            status=2,
        )
    if not is_sweep:
        flags = ["-m", *flags]
        others = [*_stored_arguments(stored, others), *others]
    return [*flags, *others, f"hydra.sweep.dir={quote_value(str(sweep))}"]


def _find_sweep(reference: str, runs_dir: Path) -> Path | None:
    """Find the sweep that `reference` names, a directory or `latest`; None if it names no sweep."""
    if reference == "latest":
        sweeps = sorted(runs_dir.rglob(COMMAND_FILE), key=lambda file: (Run(file.parent).started, file.parent))
        return sweeps[-1].parent if sweeps else None
    path = Path(reference).expanduser()
    return path if (path / COMMAND_FILE).is_file() else None


@dataclass(frozen=True)
class _StoredCommand:
    """The command in the command file of a sweep, none of which is checked: the directory may come from someone else.

    Attributes:
        file: the command file.
        hydra: its overrides of Hydra's own settings.
        task: its other overrides.
        choices: the values of each key in `task` and in `hydra.sweeper.params`, see `list_choices`.
        flags: see `config_flags`.
    """

    file: Path
    hydra: tuple[str, ...]
    task: tuple[str, ...]
    choices: Mapping[str, list[str]]
    flags: tuple[str, ...]

    def check(self, overrides: Iterable[str], *, typed: Iterable[str] = ()) -> None:
        """Raise UserError if one of the overrides could execute code or read files that it names.

        Args:
            overrides: stored overrides.
            typed: those on the command line, which are not checked.
        """
        own = {*typed}
        for override in (override for override in overrides if override not in own):
            if not _is_harmless(override):
                raise UserError(
                    f"{self.file} sets {printable(override)}, which a stored command may not: if it is yours, repeat "
                    f"the sweep's own command with all of its values, together with resume={self.file.parent}."
                )
            _check_stored_classes(override, self.file)


def _read_command(path: Path) -> _StoredCommand:
    """Return the command that started the sweep in `path`. Raises UserError if its command file is damaged."""
    file = path / COMMAND_FILE
    try:
        text = read_text(file, MAX_CONFIG_BYTES)
        check_yaml(text)
        # Hydra stores resolved overrides: a reference would be resolved here, before its check.
        settings: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
        settings = settings["hydra"]
        hydra, task = settings["overrides"]["hydra"], settings["overrides"]["task"]
        params = (settings.get("sweeper") or {}).get("params") or {}
        sources, config_name = settings["runtime"]["config_sources"], settings["job"]["config_name"]
        if not all(isinstance(override, str) for override in (*hydra, *task, config_name)):
            raise ValueError("its overrides are no texts")
        if (length := sum(map(len, (*hydra, *task, *map(str, params.values()))))) > _MAX_COMMAND_LENGTH:
            raise ValueError(f"its overrides have {length:,} characters")
        if "${" in f"{hydra} {task} {params} {sources} {config_name}":
            raise ValueError("its overrides refer to other settings")
        choices = list_choices(task, params)
        parts = {
            "overrides": {"hydra": hydra},
            "runtime": {"config_sources": sources},
            "job": {"config_name": config_name},
        }
        flags = config_flags(OmegaConf.create(parts), "train")
    except (
        *(OmegaConfBaseException, OverrideParseException, yaml.YAMLError),
        *(ValueError, TypeError, AttributeError, KeyError, ArithmeticError, RecursionError),
    ) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise DamagedRunError(file, printable(reason), "restore it from a copy, or start a new sweep") from error
    return _StoredCommand(file, tuple(hydra), tuple(task), choices, tuple(flags))


def _single_values(choices: Mapping[str, Iterable[str]]) -> list[str]:
    return [f"{key}={value}" for key, values in choices.items() for value in values]


def _stored_arguments(command: _StoredCommand, typed: Sequence[str]) -> list[str]:
    """Return the arguments that started a sweep, without those that are typed again, all of them checked."""
    # Packages trusted then are not trusted now unless they are typed again.
    retyped = {*map(override_key, typed)} & {"trust"}
    overrides = [*(override for override in command.hydra if not _is_pinned(override)), *command.task]
    stored = [override for override in overrides if override not in typed and override_key(override) not in retyped]
    command.check(stored)
    return stored


def _is_harmless(override: str) -> bool:
    """Return whether an override chooses files of conf/ alone, and nothing of Hydra but the launcher and its limits."""
    key, _, value = override.lstrip("+~").partition("=")
    if key == "trust":
        return False
    # A choice of a group may be a path to a file elsewhere.
    if key not in QUOTED_KEYS and re.search(r"\.\.|(?<![\w.-])/", value):
        return False
    if key.startswith("hydra.launcher."):
        # Launchers write names into scripts.
        name = key.rpartition(".")[2]
        if re.fullmatch(r"\d+(\.\d+)?|true|false|null", value, re.IGNORECASE) or (name, value) == ("address", "auto"):
            return True
        return name in _LAUNCHER_NAMES and re.fullmatch(r"[\w.:,=@+-]+", value) is not None
    return key in ("hydra/launcher", "hydra/sweeper") or not key.startswith("hydra")


def _check_stored_classes(override: str, file: Path) -> None:
    parser = OverridesParser.create()
    (parsed,) = parser.parse_overrides([override])
    if parsed.is_discrete_sweep():
        # Parsed together: each call of the parser takes a millisecond.
        parsed = parser.parse_override(f"x=[{','.join(parsed.sweep_string_iterator())}]")
    check_classes([parsed.value()], file, override_key(override))


def pinned_overrides(path: Path, shared: Sequence[str]) -> list[str]:
    """Return the overrides of Hydra that fix the sweep's directory and the names of its jobs in every process.

    Args:
        path: the sweep's directory.
        shared: the keys that are left out of the jobs' names.
    """
    return [
        f"hydra.sweep.dir={quote_value(str(path))}",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quote_value, shared))}]",
    ]


def _is_pinned(override: str) -> bool:
    return override.startswith(("hydra.sweep.dir=", "hydra.job.config.override_dirname.", "hydra.mode="))
