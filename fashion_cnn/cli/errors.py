"""Checks of overrides and messages for errors of the user: the value seen and the nearest choices."""

import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
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

from fashion_cnn.cli.options import COMMANDS_WITH_GROUPS, install_command
from fashion_cnn.errors import UserError, causes_of, did_you_mean, disk_error, printable
from fashion_cnn.runs.files import dotted_items
from fashion_cnn.runs.overrides import check_data_root, check_epochs
from fashion_cnn.runs.trust import why_not_defined

# Config groups that every training needs.
_REQUIRED_GROUPS = {"data", "model", "optimizer", "schedule", "trainer", "callbacks", "logger"}
# Options that may be null although their default is a number.
_NULLABLE = {"training_images", "data.cache_gb"}
_LAUNCHER_HINT = f"joblib is installed with: {install_command('sweeps')}; ray and submitit with the extra cluster."


def check_overrides(config_name: str, config: DictConfig) -> None:
    """Check the config of the running command against its defaults.

    Args:
        config_name: the command's file in conf/, without the suffix.
        config: the config composed from the command line.

    Raises:
        UserError: an unknown top-level option, or a value of another type than the default.
    """
    overrides = HydraConfig.get().overrides
    defaults = check_values(config_name, config, overrides.task, overrides.hydra)
    for key in map(str, config):
        # A group without a choice, such as `loss`, may be set by `+loss._target_=...`.
        if defaults is not None and key not in defaults and not _is_group(key):
            raise UserError(f"unknown option '{key}'.{did_you_mean(key, map(str, defaults))}", status=2)
    if config_name == "train" and not config.get("resume"):
        check_epochs(config)
        # A job of a sweep may be finished, and needs no images then.
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            check_data_root(config)


def check_resumed(config: DictConfig) -> None:
    """Check the values of a resumed run's config as if they were typed, while a command runs.

    A run that failed because of an invalid value then fails with the same message when it is resumed. The values are
    not checked where a config file of the user that it chose, as with --config-dir, is out of reach: its config is
    complete without it.
    """
    if HydraConfig.initialized():
        with suppress(MissingConfigException):
            check_values("train", config, config.get("overrides") or [], HydraConfig.get().overrides.hydra)


def check_values(
    config_name: str, config: DictConfig, task: Sequence[str], hydra_overrides: Sequence[str]
) -> DictConfig | None:
    """Check the types of the overridden values in a config.

    Args:
        config_name: the command's file in conf/, without the suffix.
        config: the config composed from the overrides.
        task: the overrides of the command.
        hydra_overrides: the overrides of Hydra's own settings.

    Returns:
        The config without the overridden values; None where no value was overridden.

    Raises:
        UserError: a value of another type than the default.
    """
    groups: list[str] = []
    values: list[str] = []
    for override in task:
        key = override.partition("=")[0]
        if key.startswith("~") and key[1:] in _REQUIRED_GROUPS:
            raise UserError(f"{key} is not possible: each run needs one. --help lists the choices.", status=2)
        (groups if "." not in key and _is_group(key) else values).append(override)
    if not values:
        return None
    chosen = [*groups, *(override for override in hydra_overrides if "." not in override.partition("=")[0])]
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.load_configuration(config_name, chosen, RunMode.RUN, from_shell=False)
    # The last value counts where a key was typed twice.
    for key, value in dict(override.lstrip("+").partition("=")[::2] for override in values).items():
        default, current = OmegaConf.select(defaults, key), OmegaConf.select(config, key)
        if current is None and key in _NULLABLE:
            continue
        # Lightning's Trainer takes several types of some values, such as devices=auto, and reports its own errors.
        if not _has_type_of(current, default) and (not key.startswith("trainer.") or isinstance(default, DictConfig)):
            raise UserError(
                f"{key}={value} is not possible: it takes {_type_name(default)}, such as {_format_value(default)}.",
                status=2,
            )
    return defaults


def _is_group(key: str) -> bool:
    return key.lstrip("+~").partition("@")[0] in GlobalHydra.instance().config_loader().list_groups("")


def _has_type_of(value: Any, default: Any) -> bool:
    if default is None or isinstance(default, str):
        return True
    if isinstance(default, bool):
        return isinstance(value, bool | int | float)
    if isinstance(default, int):
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    # A section or a list takes another one, or null to remove it.
    return value is None or type(value) is type(default)


def _type_name(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", DictConfig: "a group of options"}
    return names.get(type(value), "a list")


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, DictConfig):
        return "{" + ", ".join(map(str, value)) + "}"
    return str(value)


def exit_with_error(error: Exception, config_name: str, config_dir: str, config: DictConfig | None = None) -> NoReturn:
    """Print the message for an error of the user and exit; any other error is raised, with its traceback."""
    described = describe_error(error, config_name, config_dir, config)
    if described is None:
        own = next((cause for cause in causes_of(error) if not isinstance(cause, InstantiationException)), error)
        if own is not error and (section := _section(error)):
            own.add_note(f"It was raised while the section {section} of the config was built.")
        # Its traceback ends where it was raised, such as in the user's own class.
        raise own from own.__cause__
    exit_with(str(described), described.status)


def describe_error(
    error: Exception, config_name: str, config_dir: str, config: DictConfig | None = None
) -> UserError | None:
    """Describe an error that the user can correct, with an exit status.

    Args:
        error: what a command raised.
        config_name: the command's file in conf/, without the suffix.
        config_dir: the folder conf/.
        config: the config of the command, if it was composed.

    Returns:
        The message to print; None for a bug, whose traceback is needed.
    """
    causes = list(causes_of(error))
    user_error = next((cause for cause in causes if isinstance(cause, UserError)), None)
    return (
        user_error
        or _describe_override(error, causes, config_name, config_dir)
        or _describe_instantiation(error, causes, config_name, config_dir, config)
        or _describe_library_error(error, causes)
        or _describe_system_error(error, causes)
    )


def _describe_override(
    error: Exception, causes: Sequence[BaseException], config_name: str, config_dir: str
) -> UserError | None:
    """Describe why Hydra could not compose the config from the words of the command line."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = [str(choice) for choice in error.options or []]
        choices = f"Choices of {group}: {', '.join(options)}."
        if group == "hydra/launcher":
            choices += f" {_LAUNCHER_HINT}"
        return UserError(f"{group}={option} does not exist.{did_you_mean(option, options)} {choices}", status=2)
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        suggestion = _suggest_override(error.override, config_name, config_dir)
        return UserError(f"'{error.override}' has no key: type {suggestion}. See --help.", status=2)
    ambiguous = re.match(r"Ambiguous value for argument '(.+?)'\n", str(error))
    if isinstance(error, HydraException) and ambiguous:
        key, _, values = ambiguous[1].partition("=")
        sweep = f"-m {ambiguous[1]} for a sweep over the values, or " if config_name == "train" else ""
        return UserError(f"{ambiguous[1]} has several values: type {sweep}{key}=[{values}] for a list.", status=2)
    if isinstance(error, OverrideParseException):
        return UserError(
            f"'{error.override}' is not a valid override{_unclosed(error.override)}. Write key=value; quote a value "
            "with spaces, commas or brackets twice, such as 'key=\"a, b\"'.",
            status=2,
        )
    if isinstance(error, ConfigCompositionException) and (
        unknown := re.match(r"Could not override '(.+?)'", str(error))
    ):
        key = unknown[1].partition("@")[0]
        # For `model={a: 1}` the cause names the unknown part.
        inner = re.search(rf"full_key: ({re.escape(key)}\.\S+)", str(causes[-1]))
        return _unknown_option(inner[1] if inner else key, config_name, config_dir)
    if isinstance(error, RuntimeError) and str(error).startswith("Unknown plugin class"):
        return UserError(f"{error}: the launcher is not installed. {_LAUNCHER_HINT}", status=2)
    if isinstance(error, ValueError) and str(error).startswith("Only one of --run"):
        return UserError(f"{error}: leave out -m with --cfg and --info.", status=2)
    if isinstance(error, ValueError) and "Config group override" in str(error):  # `optimizer=3`
        return UserError(
            f"{error}: give a group one of its choices; ~mixing removes the group mixing. See --help.", status=2
        )
    return None


def _describe_instantiation(
    error: Exception, causes: Sequence[BaseException], config_name: str, config_dir: str, config: DictConfig | None
) -> UserError | None:
    """Describe a section of the config whose class or function could not be called."""
    section = _section(error)
    if section is None:
        return None
    argument = re.search(r"unexpected keyword argument '(\w+)'", str(causes[-1]))
    typed = (word.lstrip("+").partition("=")[0] for word in sys.argv[1:])
    if argument and (key := next((key for key in typed if key.endswith(f".{argument[1]}")), None)):
        return _unknown_option(key, config_name, config_dir)
    return _describe_target(causes, section, config)


def _section(error: Exception) -> str | None:
    """Return the section of the config that could not be instantiated; None for another error."""
    part = re.search(r"full_key: (\S+)", str(error)) if isinstance(error, InstantiationException) else None
    return part and part[1]


def _describe_library_error(error: Exception, causes: Sequence[BaseException]) -> UserError | None:
    """Return the message of an error that Lightning, torch, MLflow or Hydra raises for a mistake of its user."""
    # Errors of Lightning and torch, by name: importing their classes takes seconds.
    for cause in causes:
        if type(cause).__name__ in ("MisconfigurationException", "OutOfMemoryError", "MlflowException"):
            hint = " trainer=default uses the hardware of this machine." if "gpu backend" in str(cause) else ""
            return UserError(f"{cause}{hint}")
    if isinstance(error, HydraException | OmegaConfBaseException) and not _is_bug(causes[-1]):
        return UserError("\n".join(dict.fromkeys(str(cause).strip() for cause in causes)), status=2)
    return None


def _describe_system_error(error: Exception, causes: Iterable[BaseException]) -> UserError | None:
    """Describe an error of the disk or of another part of the operating system."""
    if (described := disk_error(error)) is not None:
        return described
    # Raised by `Path.resolve`.
    if isinstance(error, RuntimeError) and (loop := re.fullmatch(r"Symlink loop from '(.+)'", str(error))):
        return UserError(f"{loop[1]} is a link that leads to itself: remove it, or give another path.")
    # `instantiate` wraps the errors that it meets.
    system = next((cause for cause in causes if isinstance(cause, OSError) and cause.errno is not None), None)
    if system is not None:
        return UserError(f"{system.strerror}: {system.filename}" if system.filename else str(system.strerror))
    return None


def _unclosed(override: str) -> str:
    """Name the first bracket or quote of an override that is not closed; an empty text if all are."""
    pairs = [*zip("[{(", "]})", strict=True), *(("'", "'"), ('"', '"'))]
    for first, last in pairs:
        is_open = override.count(first) % 2 if first == last else override.count(first) > override.count(last)
        if is_open:
            return f": its {first} is not closed"
    return ""


def _describe_target(causes: Sequence[BaseException], key: str, config: DictConfig | None) -> UserError | None:
    """Describe why the class or function that a section of the config names could not be found or called.

    Args:
        causes: the error of `instantiate` and its chain of causes.
        key: the outermost section that was instantiated.
        config: the config of the command.

    Returns:
        The message; None if it was called, and failed.
    """
    inner = [cause for cause in causes if isinstance(cause, InstantiationException)][-1]
    match = re.match(r"Error (?:locating|in call to) target '(.+?)'", str(inner))
    root = str(causes[-1]).strip()
    if match is None or not isinstance(causes[-1], ImportError | AttributeError | TypeError):
        return None
    target, name = match[1], match[1].rpartition(".")[2]
    options: Mapping[Any, Any] = {}
    # The section may be one of a run's config, not of the command's.
    plain = {} if config is None else cast("dict[str, Any]", OmegaConf.to_container(config))
    # The section itself, or the part of it that its class instantiates: a classifier builds sections beside its own,
    # such as `loss`. Hydra reports the module of the definition.
    for part in (plain, {key: plain[key]} if key in plain else {}):
        for section, value in reversed([*dotted_items(part)]):
            if isinstance(value, Mapping) and str(value.get("_target_")).rpartition(".")[2] == name:
                key, options, target = section, value, str(value["_target_"])
                break
    if str(inner).startswith("Error locating"):
        return UserError(f"{key}._target_={target} {why_not_defined(target)}", status=2)
    if isinstance(causes[-1], ImportError):
        return UserError(f"{key} ({target}): {root}")
    # A message about a function that the class itself calls has another name in front.
    if not root.startswith((f"{name}(", f"{name}.__init__(")):
        return None
    if argument := re.search(r"unexpected keyword argument '(\w+)'", root):
        if argument[1] not in options:
            return UserError(
                f"{target} takes no argument '{argument[1]}', which every {key} is given: add it.", status=2
            )
        removed = " ".join(f"'~{key}.{option}'" for option in _surplus_options(target, options, argument[1]))
        return UserError(
            f"{target} takes no argument '{argument[1]}', which {key} sets: add {removed} to the command, or write a "
            "config file for it (docs/extending.md).",
            status=2,
        )
    if missing := re.search(r"missing \d+ required [\w-]+ arguments?: (.+)", root):
        return UserError(f"{target} needs {missing[1]}: add +{key}.NAME=VALUE for each.", status=2)
    return None


def _surplus_options(target: str, options: Mapping[Any, Any], known: str) -> list[str]:
    """List the options that a class or function does not take; at least the one that is known."""
    parameters = inspect.signature(hydra.utils.get_object(target)).parameters
    return [
        str(name) for name in options if name == known or (name not in parameters and not str(name).startswith("_"))
    ]


def _unknown_option(key: str, config_name: str, config_dir: str) -> UserError:
    keys = _all_keys(config_name, config_dir)
    group = key.partition(".")[0]
    is_set = any(known.startswith(f"{group}.") for known in keys) or any(
        argument.startswith(f"{group}=") for argument in sys.argv
    )
    if group in keys and group != key and not is_set:
        return UserError(
            f"'{key}': the group {group} is not set. Add {group}=CHOICE; --help lists the choices.", status=2
        )
    if key in keys:
        return UserError(
            f"unknown option '{key}' here: its section was removed or replaced. --cfg job shows the config.", status=2
        )
    if key == "run" and config_name == "train":
        hint = "resume=DIR continues a run, init_from=DIR starts from its weights; DIR may be latest."
        return UserError(f"unknown option 'run'. {hint}", status=2)
    command = "" if config_name == "train" else f" of fashion_cnn.{config_name}"
    flag = "--cfg job" if config_name in COMMANDS_WITH_GROUPS else "--help"
    return UserError(f"unknown option '{key}'{command}.{did_you_mean(key, keys)} {flag} lists all options.", status=2)


def _suggest_override(value: str, config_name: str, config_dir: str) -> str:
    """Return the overrides that a value typed without a key may stand for: `model=tiny`, or `images=shirt.jpg`."""
    keys = _all_keys(config_name, config_dir)
    groups = [folder for folder in Path(config_dir).iterdir() if folder.name in keys and folder.name != "hydra"]
    choices = sorted(f"{group.name}={value}" for group in groups if (group / f"{value}.yaml").is_file())
    paths = [f"{key}={value}" for key in ("images", "image", "runs", "run") if key in keys]
    return " or ".join(choices or paths[:1]) or "KEY=VALUE"


def _is_bug(root: BaseException) -> bool:
    """Return whether an error from `instantiate` has another cause than a wrong name or argument in the config."""
    return not isinstance(root, HydraException | OmegaConfBaseException | TypeError | ValueError | ImportError)


def exit_with(message: str, status: int) -> NoReturn:
    """Print the message as an error and exit, without a traceback."""
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(status)


def _all_keys(config_name: str, config_dir: str) -> list[str]:
    """Return each dotted key of the command's default config, and each config group that it chooses from."""
    config, groups = default_config(config_name, config_dir)
    chosen = groups if config_name in COMMANDS_WITH_GROUPS else []
    return [*chosen, *(key for key, _ in dotted_items(cast("dict[str, Any]", OmegaConf.to_container(config))))]


def default_config(config_name: str, config_dir: str) -> tuple[DictConfig, list[str]]:
    """Compose the default config of a command, while another command may be running.

    Args:
        config_name: the command's file in conf/, without the suffix.
        config_dir: the folder conf/.

    Returns:
        The config, and the names of all config groups.
    """
    command = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_dir, version_base="1.3"):
            return hydra.compose(config_name), GlobalHydra.instance().config_loader().list_groups("")
    finally:
        # Further jobs of a sweep need the loader of the command.
        GlobalHydra.instance().hydra = command
