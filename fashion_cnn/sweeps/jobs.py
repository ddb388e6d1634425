"""Jobs of a sweep: listed from its command line and the file of conf/sweep, named, and run one by one."""

import contextlib
import gc
import hashlib
import itertools
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

from fashion_cnn.errors import UserError
from fashion_cnn.runs import Run
from fashion_cnn.runs.files import dotted_items
from fashion_cnn.runs.overrides import override_key, quote_value

# Maximum length of a job directory name.
_LONGEST_NAME = 200
# What a job that shares the terminal with others prints, in its directory.
LOG_FILE = "log.txt"


@dataclass(frozen=True)
class Job:
    """One training of a sweep. name: of its directory. overrides: as Hydra's sweeper gives them to it."""

    name: str
    overrides: tuple[str, ...]


def jobs_of(overrides: Sequence[str], params: Mapping[str, Any]) -> tuple[list[Job], set[str]]:
    """The jobs of a sweep in the order of Hydra's basic sweeper, and the keys that all of them share.

    overrides: as typed. params: `hydra.sweeper.params`, which these come on top of.
    Raises ValueError for a sweep that cannot be listed, such as an interval.
    """
    choices = choices_of(overrides, params)
    shared = {key for key, values in choices.items() if len(values) == 1}
    combined = itertools.product(*([f"{key}={value}" for value in values] for key, values in choices.items()))
    return [Job(job_name(each, shared), each) for each in combined], shared


def choices_of(overrides: Sequence[str], params: Mapping[str, Any]) -> dict[str, list[str]]:
    """The values that each key takes, in the order of Hydra's basic sweeper; see `jobs_of`."""
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides([*(f"{k}={v}" for k, v in params.items()), *overrides]):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ValueError(f"{override.input_line} is no list of values")
        values = override.sweep_string_iterator() if override.is_sweep_override() else None
        choices[override.get_key_element()] = [*values] if values else [str(override.get_value_element_as_str())]
    return choices


def key_element(override: str) -> str:
    """The key as Hydra's sweeper has it, with the signs before it."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return parsed.get_key_element()


def job_name(overrides: Iterable[str], shared: Iterable[str] = ()) -> str:
    """A sweep job's directory: `lr-0.1_seed-1` for `optimizer.lr=0.1 seed=1`, with no sign that a shell minds.

    shared: keys that tell no job from another, and are left out.
    """
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    shared = {key.lstrip("+") for key in shared}
    names = (f"{key.lstrip('~').rpartition('.')[2]}-{_typable(value)}" for key, _, value in pairs if key not in shared)
    name = "_".join(name.rstrip("-") for name in names) or "job"
    if len(name) <= _LONGEST_NAME:
        return name
    # The end says most, since what a sweep varies tends to stand there; the digest keeps jobs apart.
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{digest}-{name[9 - _LONGEST_NAME :]}"


def _typable(value: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "-", value)
    return plain if value.startswith("-") else plain.lstrip("-")


def repeated_names(jobs: Iterable[Job]) -> list[str]:
    """The names that more than one job bears."""
    return [name for name, times in Counter(job.name for job in jobs).items() if times > 1]


def spelled_out(overrides: Iterable[str]) -> list[str]:
    """The overrides, `sweep=NAME` replaced by what that file sets: `data.train_fraction=0.2 test=false`.

    They make the same training without it. What is typed beside it takes the place of what the file says.
    """
    overrides = [*overrides]
    typed = {override_key(override) for override in overrides}
    spelled = []
    for override in overrides:
        if override_key(override) == "sweep":
            settings = _settings_of(override.partition("=")[2].strip("'\""), overrides)
            spelled += [setting for setting in settings if override_key(setting) not in typed]
        else:
            spelled.append(override)
    return spelled


def _settings_of(name: str, overrides: Sequence[str]) -> list[str]:
    """What the file of this name sets, but for Hydra; nothing where there is none, as for `null`."""
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
            groups = [f"{group}={_typed(choice)}" for group, choice in chosen.items()]
            there = _groups_of([*groups, *overrides])
            values = [
                (key, value) for key, value in dotted_items(file or {}) if not isinstance(value, dict) or not value
            ]
            return [*groups, *(f"{'' if _has(there, key) else '+'}{key}={_typed(value)}" for key, value in values)]
    return []


def _groups_of(overrides: Iterable[str]) -> DictConfig:
    """The config of a training with the chosen groups alone."""
    loader = GlobalHydra.instance().config_loader()
    groups = {*loader.list_groups("")} - {"sweep"}
    chosen = [override for override in overrides if override_key(override) in groups]
    return loader.load_configuration("train", chosen, RunMode.RUN, from_shell=False)


def _has(config: DictConfig, key: str) -> bool:
    absent = object()
    return OmegaConf.select(config, key, default=absent) is not absent


def _typed(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
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
    composed = HydraConfig.get()
    run = Run(Path(composed.runtime.output_dir))
    _enter(Path(composed.runtime.cwd))
    alone = composed.launcher._target_.endswith(".BasicLauncher")
    finished = run.state == "finished"
    if finished:
        print(f"{run.path.name}: was finished already", flush=True)
    with contextlib.nullcontext() if alone or finished else _told_apart(run):
        try:
            return task(config)
        except (Exception, SystemExit) as error:
            mistake = describe_error(error) if isinstance(error, Exception) else None
            if mistake is None:
                traceback.print_exc()
            _record(run, config, f"{type(error).__name__}: {error}" if mistake is None else str(mistake))
            return None
        finally:
            # Trainer, loggers and callbacks refer to each other; their tensors are not to wait for the next job.
            gc.collect()


def _enter(folder: Path) -> None:
    """Go where the sweep was started, so that relative paths lead to the same files on another node of a cluster."""
    if folder.is_dir() and Path.cwd() != folder:
        os.chdir(folder)


def _record(run: Run, config: DictConfig, reason: str) -> None:
    print(f"error: {run.path.name}: {reason}", file=sys.stderr, flush=True)
    if run.state in ("finished", "running"):
        return  # It is another's to say how those stand.
    if not run.config_file.exists():
        run.create()
        run.write_config(config)
    run.error_file.write_text(f"{reason}\n")


@contextlib.contextmanager
def _told_apart(run: Run) -> Iterator[None]:
    """Print a line at the start and at the end; what the job prints goes to its own log."""
    terminal = sys.stdout
    print(f"{run.path.name}: started", file=terminal, flush=True)
    run.create()
    log = (run.path / LOG_FILE).open("a", buffering=1)
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
    print(f"{run.path.name}: {_outcome(run)}", file=terminal, flush=True)


def _outcome(run: Run) -> str:
    results = run.results()
    figures = [
        f"{split} {results[f'{split}/accuracy']:.2%}" for split in ("val", "test") if f"{split}/accuracy" in results
    ]
    return ", ".join([run.describe_state(), *figures])
