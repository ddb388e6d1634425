"""The door of every command: Hydra's command line in, one message out where a person made a mistake."""

import difflib
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion_cnn.errors import UserError

_PACKAGE = Path(__file__).parent
# In the wheel conf/ lies inside the package, in a checkout beside it.
CONFIG_DIR = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())

# Values that are paths, which people type with characters that Hydra's grammar gives a meaning.
PATH_KEYS = {"data.root", "runs_dir", "resume", "init_from"}


class Interrupted(KeyboardInterrupt):
    """A person or the system stopped the command: what to type to go on, and the exit status."""

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(message)
        self.status = status


def run_command(config_name: str, task: Callable[[DictConfig], Any]) -> None:
    """Compose `conf/<config_name>.yaml` with the overrides on the command line and call `task` with it.

    Ends the process with status 0, 1 for a failure, 2 for a mistake on the command line, 130 for Ctrl-C.
    """
    sys.argv[1:] = [quote_path(argument) for argument in sys.argv[1:]]
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    OmegaConf.register_new_resolver("job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("short_id", lambda: secrets.token_hex(3), use_cache=True, replace=True)

    def checked_task(config: DictConfig) -> Any:
        try:
            _check_overrides(config_name, config)
            _name_run(config, HydraConfig.get().runtime.choices)
            return task(config)
        except Exception as error:
            # One job of a sweep reports to the sweep, which goes on; Hydra would announce a single one twice.
            if wants_traceback or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            _explain_and_exit(error, config_name)

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
        _explain_and_exit(error, config_name)


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
    choices = config.hydra.runtime.choices
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    OmegaConf.set_struct(config, True)
    _name_run(config, choices)
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


def job_name(overrides: list[str]) -> str:
    """A sweep job's directory: `lr-0.1_seed-1` for `optimizer.lr=0.1 seed=1`, with no sign that a shell minds."""
    pairs = [override.lstrip("+~").partition("=") for override in overrides]
    names = (f"{key.rpartition('.')[2]}-{value}" for key, _, value in pairs)
    return "_".join(re.sub(r"[^\w.+]+", "-", name).strip("-") for name in names) or "job"


def _name_run(config: DictConfig, choices: Any) -> None:
    """Fill in `name`, where the command has one: the experiment's, else the model's."""
    if "name" in config and config.name is None:
        config.name = choices.get("experiment") or choices.get("model")


def _check_overrides(config_name: str, config: DictConfig) -> None:
    """Refuse unknown root keys and values of another type than the one they replace."""
    base = _without_values(config_name)
    for key in map(str, config):
        if key not in base:
            raise UserError(f"'{key}' is no option.{_did_you_mean(key, map(str, base))}", status=2)
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.lstrip("+").partition("=")
        before, after = OmegaConf.select(base, key), OmegaConf.select(config, key)
        if not _fits(before, after):
            raise UserError(
                f"{key}={value} is not possible: it takes {_kind(before)}, such as {_as_typed(before)}.", status=2
            )


def _without_values(config_name: str) -> DictConfig:
    """The config with the chosen groups alone, before any single value was overridden."""
    loader = GlobalHydra.instance().config_loader()
    overrides = HydraConfig.get().overrides
    groups = [o for o in overrides.task if "." not in o.partition("=")[0] and _is_group(o.partition("=")[0])]
    hydra_groups = [o for o in overrides.hydra if "." not in o.partition("=")[0]]
    return loader.load_configuration(config_name, [*groups, *hydra_groups], RunMode.RUN, from_shell=False)


def _is_group(key: str) -> bool:
    return key.lstrip("+~").partition("@")[0] in GlobalHydra.instance().config_loader().list_groups("")


def _fits(before: Any, after: Any) -> bool:
    if before is None or isinstance(before, str):
        return True
    if isinstance(before, bool):
        return isinstance(after, bool | int | float)
    if isinstance(before, int):
        return isinstance(after, int) and not isinstance(after, bool)
    if isinstance(before, float):
        return isinstance(after, int | float) and not isinstance(after, bool)
    # A part of the config, or a list: another of its kind, or null to drop it.
    return after is None or type(before) is type(after)


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", DictConfig: "a group of options"}
    return kinds.get(type(value), "a list")


def _as_typed(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, DictConfig):
        return "{" + ", ".join(map(str, value)) + "}"
    return str(value)


def _explain_and_exit(error: Exception, config_name: str) -> NoReturn:
    """Print what is wrong in words and exit; an error that no person caused keeps its traceback."""
    causes = list(_causes(error))
    user_error = next((cause for cause in causes if isinstance(cause, UserError)), None)
    if user_error is not None:
        _exit(str(user_error), user_error.status)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = [str(o) for o in error.options or []]
        _exit(
            f"{group}={option} does not exist.{_did_you_mean(option, options)} {group} offers: {_listed(options)}.", 2
        )
    if isinstance(error, OverrideParseException):
        _exit(
            f"'{error.override}' cannot be understood. Write key=value; put a value with spaces, commas or "
            f"brackets in quotes inside quotes, such as 'key=\"a, b\"'.\n{error}",
            2,
        )
    if isinstance(error, ConfigCompositionException) and (
        unknown := re.match(r"Could not override '(.+?)'", str(error))
    ):
        key = unknown[1].partition("@")[0]
        _exit(f"'{key}' is no option.{_did_you_mean(key, _all_keys(config_name))} See --help for all of them.", 2)
    if isinstance(error, ValueError) and "Config group override" in str(error):  # `optimizer=3`
        _exit(f"{error}: a group takes the name of one of its choices. See --help for all of them.", 2)
    if isinstance(error, HydraException | OmegaConfBaseException) and not _is_bug(causes[-1]):
        _exit("\n".join(dict.fromkeys(str(cause).strip() for cause in causes)), 2)
    if isinstance(error, OSError) and error.errno is not None:
        _exit(f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror), 1)
    if type(error).__name__ in ("MisconfigurationException", "OutOfMemoryError"):  # Of lightning and torch.
        _exit(str(error), 1)
    raise error


def _is_bug(root: BaseException) -> bool:
    """Whether what `instantiate` met is no consequence of a wrong name or argument in the config."""
    return not isinstance(root, HydraException | OmegaConfBaseException | TypeError | ValueError | ImportError)


def _exit(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _did_you_mean(word: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    # Where only the last part of a dotted key is known: `lr` for `optimizer.lr`.
    near += [choice for choice in choices if choice.rpartition(".")[2] == word.rpartition(".")[2]]
    return f" Did you mean {_listed(dict.fromkeys(near), ' or ')}?" if near else ""


def _listed(words: Iterable[str], separator: str = ", ") -> str:
    return separator.join(words)


def _all_keys(config_name: str) -> list[str]:
    """Every dotted key of the command's default config, and every config group."""
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = hydra.compose(config_name)
        groups = GlobalHydra.instance().config_loader().list_groups("")
    return [*groups, *_dotted(cast("dict[str, Any]", OmegaConf.to_container(config)))]


def _dotted(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
