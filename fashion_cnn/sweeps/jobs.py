"""Jobs of a sweep: their list from the command line and conf/sweep, their names, and the execution of one job."""

import contextlib
import gc
import hashlib
import itertools
import math
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fashion_cnn.errors import UserError, unusable
from fashion_cnn.runs import Run
from fashion_cnn.runs.files import dotted_items
from fashion_cnn.runs.overrides import override_key, quote_value

# Maximum length of a job directory name.
_MAX_NAME_LENGTH = 200
# Maximum number of jobs of a sweep, and of values of a key; a range can stand for any number.
_MAX_JOBS = 10_000
# Output of a job that runs in parallel with others, in its directory.
LOG_FILE = "log.txt"


@dataclass(frozen=True)
class Job:
    """One training of a sweep.

    Attributes:
        name: name of its directory.
        overrides: its overrides, as Hydra's sweeper lists them.
    """

    name: str
    overrides: tuple[str, ...]


def list_jobs(overrides: Sequence[str], params: Mapping[str, Any]) -> tuple[list[Job], set[str]]:
    """List the jobs of a sweep, in the order of Hydra's basic sweeper.

    Args:
        overrides: those on the command line, which replace `params`.
        params: `hydra.sweeper.params`.

    Returns:
        The jobs, and the keys that have the same value in all of them.

    Raises:
        ValueError: a sweep without a list of values, such as an interval.
        UserError: more than 10,000 jobs.
    """
    choices = list_choices(overrides, params)
    _check_count(math.prod(map(len, choices.values())), "jobs")
    shared = {key for key, values in choices.items() if len(values) == 1}
    combined = itertools.product(*([f"{key}={value}" for value in values] for key, values in choices.items()))
    return [Job(job_name(each, shared), each) for each in combined], shared


def list_choices(overrides: Sequence[str], params: Mapping[str, Any]) -> dict[str, list[str]]:
    """List the values of each key, in the order of Hydra's basic sweeper; see `list_jobs`."""
    choices: dict[str, list[str]] = {}
    hydra = GlobalHydra.instance()
    # Names the options of a group for glob(*).
    parser = OverridesParser.create(hydra.config_loader() if hydra.is_initialized() else None)
    for override in parser.parse_overrides([*(f"{k}={v}" for k, v in params.items()), *overrides]):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ValueError(f"{override.input_line} is not a list of values")
        if override.is_range_sweep():
            swept: Any = override.value()
            count = math.ceil((swept.stop - swept.start) / swept.step) if swept.step else math.inf
            _check_count(count, f"values of {override.get_key_element()}")
        key = override.get_key_element()
        if override.is_sweep_override():
            choices[key] = [*override.sweep_string_iterator()]
            _check_count(len(choices[key]), f"values of {key}")
        else:
            choices[key] = [str(override.get_value_element_as_str())]
    return choices


def _check_count(count: float, noun: str) -> None:
    if count > _MAX_JOBS:
        raise UserError(f"{count:,} {noun} are too many for a sweep, which has at most {_MAX_JOBS:,}: give fewer.")


def key_element(override: str) -> str:
    """Return the key of an override with its prefix `+`, `++` or `~`, as Hydra's sweeper has it."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return parsed.get_key_element()


def job_name(overrides: Iterable[str], shared: Iterable[str] = ()) -> str:
    """Name a job's directory: `lr-0.1_seed-1` for `optimizer.lr=0.1 seed=1`, without special characters of shells.

    Args:
        overrides: those of the job.
        shared: keys with the same value in all jobs, which are left out.
    """
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    shared = {key.lstrip("+") for key in shared}
    names = (f"{key.lstrip('~').rpartition('.')[2]}-{_sanitize(value)}" for key, _, value in pairs if key not in shared)
    name = "_".join(name.rstrip("-") for name in names) or "job"
    if len(name) <= _MAX_NAME_LENGTH:
        return name
    # Keep the end, where the swept values tend to be; the digest keeps the names of different jobs different.
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{digest}-{name[9 - _MAX_NAME_LENGTH :]}"


def _sanitize(value: str) -> str:
    name = re.sub(r"[^\w.+-]+", "-", value)
    return name if value.startswith("-") else name.lstrip("-")


def repeated_names(jobs: Iterable[Job]) -> list[str]:
    """Return the names that more than one job has."""
    return [name for name, times in Counter(job.name for job in jobs).items() if times > 1]


def expand_sweep(overrides: Iterable[str]) -> list[str]:
    """Replace `sweep=NAME` by the settings in that file, such as `data.train_fraction=0.2 test=false`.

    The returned overrides make the same training. Other overrides replace the settings in the file.
    """
    overrides = [*overrides]
    keys = {override_key(override) for override in overrides}
    expanded = []
    for override in overrides:
        if override_key(override) == "sweep":
            settings = _sweep_settings(override.partition("=")[2].strip("'\""), overrides)
            expanded += [setting for setting in settings if override_key(setting) not in keys]
        else:
            expanded.append(override)
    return expanded


def _sweep_settings(name: str, overrides: Sequence[str]) -> list[str]:
    """Return the settings in `conf/sweep/NAME.yaml` as overrides, without Hydra's; none if there is no such file."""
    for source in GlobalHydra.instance().config_loader().get_sources():
        if source.is_config(f"sweep/{name}"):
            file: Any = OmegaConf.to_container(source.load_config(f"sweep/{name}").config)
            file.pop("hydra", None)
            chosen = {
                key.removeprefix("override ").lstrip("/"): choice
                for default in file.pop("defaults", [])
                if isinstance(default, dict)
                for key, choice in default.items()
            }
            groups = [f"{group}={_format_value(choice)}" for group, choice in chosen.items()]
            config = _compose_groups([*groups, *overrides])
            values = [
                (key, value) for key, value in dotted_items(file or {}) if not isinstance(value, dict) or not value
            ]
            return [
                *groups,
                *(f"{'' if _has(config, key) else '+'}{key}={_format_value(value)}" for key, value in values),
            ]
    return []


def _compose_groups(overrides: Iterable[str]) -> DictConfig:
    """Compose the config of a training with the overrides of groups only."""
    loader = GlobalHydra.instance().config_loader()
    groups = {*loader.list_groups("")} - {"sweep"}
    chosen = [override for override in overrides if override_key(override) in groups]
    return loader.load_configuration("train", chosen, RunMode.RUN, from_shell=False)


def _has(config: DictConfig, key: str) -> bool:
    absent = object()
    return OmegaConf.select(config, key, default=absent) is not absent


def _format_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_format_value, value))}]"
    text = str(value)
    return text if re.fullmatch(r"[\w./+-]+|\$\{.*\}|\{\}", text) else quote_value(text)


def run_job(
    task: Callable[[DictConfig], Any], config: DictConfig, describe_error: Callable[[Exception], UserError | None]
) -> Any:
    """Run one job of a sweep; a failure does not stop the other jobs.

    Args:
        task: called with `config`.
        config: the job's config.
        describe_error: returns the message for an error of the user, None for a bug.

    Returns:
        The result of `task`, or None after a failure, which is printed and written to `error.txt` of the run.
    """
    hydra_config = HydraConfig.get()
    run = Run(Path(hydra_config.runtime.output_dir))
    _change_directory(Path(hydra_config.runtime.cwd))
    is_sequential = hydra_config.launcher._target_.endswith(".BasicLauncher")
    is_finished = run.state == "finished"
    if is_finished:
        print(f"{run.path.name}: already finished", flush=True)
    with contextlib.ExitStack() as outputs:
        try:
            if not (is_sequential or is_finished):
                outputs.enter_context(_output_to_log(run))
            return task(config)
        except (Exception, SystemExit) as error:
            user_error = describe_error(error) if isinstance(error, Exception) else None
            if user_error is None:
                traceback.print_exc()
            _record_error(run, config, f"{type(error).__name__}: {error}" if user_error is None else str(user_error))
            return None
        finally:
            # Trainer, loggers and callbacks refer to each other: free their tensors before the next job.
            gc.collect()


def _change_directory(folder: Path) -> None:
    """Change to the directory of the sweep's command, so that relative paths are valid on other nodes of a cluster."""
    if folder.is_dir() and Path.cwd() != folder:
        os.chdir(folder)


def _record_error(run: Run, config: DictConfig, reason: str) -> None:
    print(f"error: {run.path.name}: {reason}", file=sys.stderr, flush=True)
    if run.state in ("finished", "running"):
        return  # Another process writes their state.
    # A directory that cannot be written is the reason itself.
    with contextlib.suppress(UserError, OSError):
        if not run.config_file.exists():
            run.create()
            run.write_config(config)
        run.write_error(reason)


@contextlib.contextmanager
def _output_to_log(run: Run) -> Iterator[None]:
    """Write the output of a job to its log file, and print a line at its start and its end.

    Raises:
        UserError: if the file cannot be written.
    """
    terminal = sys.stdout
    print(f"{run.path.name}: started", file=terminal, flush=True)
    run.create()
    file = run.path / LOG_FILE
    if file.exists() and not file.is_file():  # A named pipe could block for ever.
        raise UserError(f"{file} is not a regular file: delete it, and resume the sweep.")
    try:
        log = file.open("a", buffering=1)
    except OSError as error:
        raise unusable(error, file) from error
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
    print(f"{run.path.name}: {_describe_outcome(run)}", file=terminal, flush=True)


def _describe_outcome(run: Run) -> str:
    results = run.results()
    accuracies = [
        f"{split} {results[f'{split}/accuracy']:.2%}" for split in ("val", "test") if f"{split}/accuracy" in results
    ]
    return ", ".join([run.describe_state(), *accuracies])
