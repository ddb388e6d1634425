"""The door of every command: Hydra's command line in, one message out where a person made a mistake."""

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fashion_cnn.mistakes import check_overrides, exit_with, explain_and_exit

_PACKAGE = Path(__file__).parent
# In the wheel conf/ lies inside the package, in a checkout beside it.
CONFIG_DIR = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())

# Values that are paths, which people type with characters that Hydra's grammar gives a meaning.
PATH_KEYS = {"data.root", "runs_dir", "resume", "init_from", "runs", "out"}
# Of a sweep job's directory, in characters.
_LONGEST_NAME = 200


class Interrupted(KeyboardInterrupt):
    """A person or the system stopped the command: what to type to go on, and the exit status."""

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(message)
        self.status = status


def run_command(config_name: str, task: Callable[[DictConfig], Any]) -> None:
    """Compose `conf/<config_name>.yaml` with the overrides on the command line and call `task` with it.

    Ends the process with status 0, 1 for a failure, 2 for a mistake on the command line, 130 for Ctrl-C.
    """
    _refuse_dashes(sys.argv[1:])
    sys.argv[1:] = [quote_path(argument) for argument in sys.argv[1:]]
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    OmegaConf.register_new_resolver("job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("short_id", lambda: secrets.token_hex(3), use_cache=True, replace=True)

    def checked_task(config: DictConfig) -> Any:
        try:
            check_overrides(config_name, config)
            _describe_run(config, HydraConfig.get())
            return task(config)
        except Exception as error:
            # One job of a sweep reports to the sweep, which goes on; Hydra would announce a single one twice.
            if wants_traceback or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            explain_and_exit(error, config_name, str(CONFIG_DIR))

    main = hydra.main(config_path=str(CONFIG_DIR), config_name=config_name, version_base="1.3")
    try:
        with _hydra_raising():
            main(checked_task)()
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        print("\nStopped before anything was begun.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if wants_traceback:
            raise
        explain_and_exit(error, config_name, str(CONFIG_DIR))


def _refuse_dashes(arguments: Iterable[str]) -> None:
    """Exit where a setting was typed as other programs have it, `--model fast`."""
    groups = {folder.name for folder in CONFIG_DIR.iterdir() if folder.is_dir()}
    for argument in arguments:
        key = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and key.partition(".")[0] in groups | PATH_KEYS | {"seed", "test"}:
            exit_with(f"{argument} is no option: type {key}=…, without dashes.", 2)


@contextmanager
def _hydra_raising() -> Iterator[None]:
    """Have Hydra raise what went wrong, where it would print it and exit."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def compose(config_name: str = "train", overrides: Iterable[str] = ()) -> DictConfig:
    """The config of a command as its command line would give it: for notebooks and tests."""
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = hydra.compose(config_name, overrides=list(overrides), return_hydra_config=True)
    composed = config.hydra
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    OmegaConf.set_struct(config, True)
    _describe_run(config, composed)
    return config


def quote_path(argument: str) -> str:
    """Quote the value of `key=value` for Hydra where the key is a path, or a list `[a,b]` of paths."""
    key, equals, value = argument.partition("=")
    if not equals or key.lstrip("+") not in PATH_KEYS or value in ("", "null") or value[0] in "'\"" or "${" in value:
        return argument
    if value[0] == "[" and value[-1] == "]" and not Path(value).exists():
        return f"{key}=[{','.join(_quoted(part) for part in value[1:-1].split(','))}]"
    return f"{key}={_quoted(value)}"


def _quoted(value: str) -> str:
    # In Hydra's quotes a backslash counts only before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def unquote_path(override: str) -> str:
    """What a person would type for an override that `quote_path` may have quoted."""
    key, _, value = override.partition("=")
    if key.lstrip("+") not in PATH_KEYS or value[:1] != "'":
        return override
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return f"{key}={parsed.value()}"


def job_name(overrides: list[str]) -> str:
    """A sweep job's directory: `lr-0.1_seed-1` for `optimizer.lr=0.1 seed=1`, with no sign that a shell minds."""
    pairs = [override.lstrip("+~").partition("=") for override in overrides]
    names = (f"{key.rpartition('.')[2]}-{value}" for key, _, value in pairs)
    name = "_".join(re.sub(r"[^\w.+]+", "-", name).strip("-") for name in names) or "job"
    if len(name) <= _LONGEST_NAME:
        return name
    # The end says most, since what a sweep varies tends to stand there; the digest keeps jobs apart.
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{digest}-{name[9 - _LONGEST_NAME :]}"


def _describe_run(config: DictConfig, composed: Any) -> None:
    """Fill in a training's `name`, the experiment's or else the model's, and the `overrides` that were typed."""
    if "name" in config and config.name is None:
        choices = composed.runtime.choices
        config.name = choices.get("experiment") or choices.get("model")
    if "overrides" in config:
        config.overrides = [unquote_path(override) for override in composed.overrides.task]
