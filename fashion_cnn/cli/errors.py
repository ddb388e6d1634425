"""Error messages for what a person typed wrong: the value seen and the nearest choices."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion_cnn.errors import UserError, did_you_mean
from fashion_cnn.runs.files import dotted_items

# Groups that a run cannot do without.
_REQUIRED = {"data", "model", "optimizer", "schedule", "trainer", "callbacks", "logger"}
_MORE_LAUNCHERS = (
    "joblib comes with pip install -c scripts/constraints.txt -e '.[sweeps]', ray and submitit with '.[cluster]'."
)


def check_overrides(config_name: str, config: DictConfig) -> None:
    """Refuse unknown root keys and values of another type than the one they replace."""
    overrides = HydraConfig.get().overrides
    base = _without_values(config_name, overrides.task, overrides.hydra)
    for key in map(str, config):
        if key not in base:
            raise UserError(f"'{key}' is no option.{did_you_mean(key, map(str, base))}", status=2)
    _check_kinds(base, config, overrides.task)


def check_values(config_name: str, config: DictConfig, task: Sequence[str], hydra_overrides: Sequence[str]) -> None:
    """Refuse values of another type than the one they replace in a `config` composed with the overrides `task`."""
    _check_kinds(_without_values(config_name, task, hydra_overrides), config, task)


def check_resumed(config: DictConfig) -> None:
    """Check the values of a resumed run's own config as those of a command line, while a command runs.

    A run that failed by a value that is not possible gives the same message as when that value is typed.
    """
    if HydraConfig.initialized():
        check_values("train", config, config.get("overrides") or [], HydraConfig.get().overrides.hydra)


def _check_kinds(base: DictConfig, config: DictConfig, task: Sequence[str]) -> None:
    # The last value counts where a key was typed twice.
    for key, value in dict(override.lstrip("+").partition("=")[::2] for override in task).items():
        if key.startswith("~") and key[1:] in _REQUIRED:
            raise UserError(f"{key} is not possible: each run needs one. --help lists the choices.", status=2)
        before, after = OmegaConf.select(base, key), OmegaConf.select(config, key)
        # Lightning's Trainer takes several kinds of some values, such as devices=auto, and says itself what is wrong.
        if not _fits(before, after) and (not key.startswith("trainer.") or isinstance(before, DictConfig)):
            raise UserError(
                f"{key}={value} is not possible: it takes {_kind(before)}, such as {_as_typed(before)}.", status=2
            )


def _without_values(config_name: str, task: Sequence[str], hydra_overrides: Sequence[str]) -> DictConfig:
    """The config with the chosen groups alone, before any single value was overridden."""
    loader = GlobalHydra.instance().config_loader()
    groups = [o for o in task if "." not in o.partition("=")[0] and _is_group(o.partition("=")[0])]
    hydra_groups = [o for o in hydra_overrides if "." not in o.partition("=")[0]]
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


def explain_and_exit(error: Exception, config_name: str, config_dir: str) -> NoReturn:
    """Print what is wrong in words and exit; an error that no person caused keeps its traceback."""
    mistake = explain(error, config_name, config_dir)
    if mistake is None:
        raise error
    exit_with(str(mistake), mistake.status)


def explain(error: Exception, config_name: str, config_dir: str) -> UserError | None:
    """What is wrong, in words, with the exit status for it; None for an error that no person caused."""
    causes = list(_causes(error))
    user_error = next((cause for cause in causes if isinstance(cause, UserError)), None)
    if user_error is not None:
        return user_error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = [str(o) for o in error.options or []]
        offers = f"{group} offers: {', '.join(options)}."
        if group == "hydra/launcher":
            offers += f" {_MORE_LAUNCHERS}"
        return UserError(f"{group}={option} does not exist.{did_you_mean(option, options)} {offers}", status=2)
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        meant = _with_a_key(error.override, config_name, config_dir)
        return UserError(f"'{error.override}' has no key: type {meant}. See --help.", status=2)
    several = re.match(r"Ambiguous value for argument '(.+?)'\n", str(error))
    if isinstance(error, HydraException) and several:
        key, _, values = several[1].partition("=")
        swept = f"-m {several[1]} trains once for each of them, and " if config_name == "train" else ""
        return UserError(f"{several[1]}: {swept}{key}=[{values}] is a list.", status=2)
    if isinstance(error, OverrideParseException):
        return UserError(
            f"'{error.override}' cannot be understood. Write key=value; put a value with spaces, commas or "
            f"brackets in quotes inside quotes, such as 'key=\"a, b\"'.\n{error}",
            status=2,
        )
    if isinstance(error, ConfigCompositionException) and (
        unknown := re.match(r"Could not override '(.+?)'", str(error))
    ):
        key = unknown[1].partition("@")[0]
        # Of `model={a: 1}` the cause names the part that there is not.
        inner = re.search(rf"full_key: ({re.escape(key)}\.\S+)", str(causes[-1]))
        return _no_option(inner[1] if inner else key, config_name, config_dir)
    argument = re.search(r"unexpected keyword argument '(\w+)'", str(causes[-1]))
    if isinstance(error, InstantiationException) and argument and (part := re.search(r"full_key: (\S+)", str(error))):
        typed = (word.lstrip("+").partition("=")[0] for word in sys.argv[1:])
        key = next((key for key in typed if key.endswith(f".{argument[1]}")), f"{part[1]}.{argument[1]}")
        return _no_option(key, config_name, config_dir)
    if isinstance(error, RuntimeError) and str(error).startswith("Unknown plugin class"):
        return UserError(f"{error}: it is not installed. {_MORE_LAUNCHERS}", status=2)
    if isinstance(error, ValueError) and str(error).startswith("Only one of --run"):
        return UserError(f"{error}: leave -m out beside --cfg and --info.", status=2)
    if isinstance(error, ValueError) and "Config group override" in str(error):  # `optimizer=3`
        return UserError(
            f"{error}: a group takes the name of one of its choices, and ~mixing drops one. See --help.", status=2
        )
    for cause in causes:
        if type(cause).__name__ in ("MisconfigurationException", "OutOfMemoryError"):  # Of lightning and torch.
            hint = " trainer=default takes what the machine has." if "gpu backend" in str(cause) else ""
            return UserError(f"{cause}{hint}")
    if isinstance(error, HydraException | OmegaConfBaseException) and not _is_bug(causes[-1]):
        return UserError("\n".join(dict.fromkeys(str(cause).strip() for cause in causes)), status=2)
    # `instantiate` wraps what it meets.
    system = next((cause for cause in causes if isinstance(cause, OSError) and cause.errno is not None), None)
    if system is not None:
        return UserError(f"{system.strerror}: {system.filename}" if system.filename else str(system.strerror))
    return None


def _no_option(key: str, config_name: str, config_dir: str) -> UserError:
    keys = _all_keys(config_name, config_dir)
    group = key.partition(".")[0]
    chosen = any(part.startswith(f"{group}.") for part in keys) or any(
        word.startswith(f"{group}=") for word in sys.argv
    )
    if group in keys and group != key and not chosen:
        return UserError(
            f"'{key}': nothing is chosen of {group}. Say {group}=… too; --help lists its choices.", status=2
        )
    if key in keys:
        return UserError(
            f"'{key}' is no option here: what it belongs to was dropped or replaced. See --cfg job.", status=2
        )
    near = did_you_mean(key, keys)
    of = "" if config_name == "train" else f" of fashion_cnn.{config_name}"
    return UserError(f"'{key}' is no option{of}.{near} See --help for all of them.", status=2)


def _with_a_key(word: str, config_name: str, config_dir: str) -> str:
    """What a person may have meant who typed a value alone: `model=tiny`, or `images=shirt.jpg`."""
    keys = _all_keys(config_name, config_dir)
    groups = [folder for folder in Path(config_dir).iterdir() if folder.name in keys]
    offered = sorted(f"{group.name}={word}" for group in groups if (group / f"{word}.yaml").is_file())
    taken = [f"{key}={word}" for key in ("images", "image", "runs", "run") if key in keys]
    return " or ".join(offered or taken[:1]) or "KEY=VALUE"


def _is_bug(root: BaseException) -> bool:
    """Whether what `instantiate` met is no consequence of a wrong name or argument in the config."""
    return not isinstance(root, HydraException | OmegaConfBaseException | TypeError | ValueError | ImportError)


def exit_with(message: str, status: int) -> NoReturn:
    """Print the message as an error and exit, without a traceback."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its chain of causes, each once.

    OmegaConf makes the chain a cycle where a debugger or a coverage tool traces the program.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _all_keys(config_name: str, config_dir: str) -> list[str]:
    """Every dotted key of the command's default config, and every config group that it chooses from."""
    command = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_dir, version_base="1.3"):
            config = hydra.compose(config_name)
            # Those that the command chooses from.
            has_groups = config_name in ("train", "tune")
            groups = GlobalHydra.instance().config_loader().list_groups("") if has_groups else []
    finally:
        # Further jobs of a sweep need it.
        GlobalHydra.instance().hydra = command
    return [*groups, *(key for key, _ in dotted_items(cast("dict[str, Any]", OmegaConf.to_container(config))))]
