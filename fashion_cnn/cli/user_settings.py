"""Settings of the user in `~/.config/fashion_cnn/*.yaml`: above the defaults, below the command line."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fashion_cnn.cli.options import COMMANDS_WITH_GROUPS
from fashion_cnn.errors import UserError, did_you_mean
from fashion_cnn.runs.files import dotted_items
from fashion_cnn.runs.overrides import CONFIG_DIR, override_key, split_flags

# Settings of the place and the way in which commands run. None of them changes what is trained.
_KEYS = ("data.root", "runs_dir", "logger", "hydra/launcher")
# Options of the launcher.
_LAUNCHER = "hydra.launcher."
# Config group whose files conf/ includes if they exist.
_GROUP = "user"
_MAX_BYTES = 100_000


def user_folder() -> Path:
    """Return the folder of the user's settings, which need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path("~/.config").expanduser()) / "fashion_cnn"


def read_user_settings() -> dict[str, str]:
    """Read the settings of all files in the user's folder, by key.

    Raises:
        UserError: if a file cannot be read, or a setting is none of those that a user may have, names the file.
    """
    settings: dict[str, str] = {}
    origin: dict[str, Path] = {}
    for file in sorted(user_folder().glob("*.yaml")):
        for key, value in _read(file):
            if key in origin:
                raise UserError(f"{file}: {key} is set in {origin[key]}, too: remove one of them.", status=2)
            settings[key], origin[key] = _check_value(file, key, value), file
    return settings


def apply_user_settings(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Store the settings where conf/ includes them, and return the command line with the launcher of the user.

    Args:
        config_name: the command's file in conf/, without the suffix.
        arguments: the command line.
    """
    settings = read_user_settings()
    common: dict[str, Any] = {}
    if "runs_dir" in settings:
        common["runs_dir"] = settings["runs_dir"]
    is_training = config_name in COMMANDS_WITH_GROUPS
    if is_training and "logger" in settings:
        common["defaults"] = [{"override /logger": settings["logger"]}, "_self_"]
    root = {"root": settings["data.root"]} if "data.root" in settings else {}
    store = ConfigStore.instance()
    store.store(group=_GROUP, name="settings", node=common, package="_global_")
    store.store(group=_GROUP, name="data_root", node=root)
    typed = {override_key(argument) for argument in arguments}
    if config_name != "train" or "hydra/launcher" in typed:
        return [*arguments]
    # Hydra admits a choice of its own groups in the main config or on the command line only.
    own = [f"{key}={value}" for key, value in settings.items() if key == "hydra/launcher" or key.startswith(_LAUNCHER)]
    flags, overrides = split_flags(arguments)
    return [*flags, *(override for override in own if override_key(override) not in typed), *overrides]


def _read(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        with file.open("rb") as content:
            text = content.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise UserError(f"{file} has more than {_MAX_BYTES:,} bytes: no file of settings is that large.", status=2)
        settings = OmegaConf.to_container(OmegaConf.create(text.decode()))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{file} cannot be read: {reason}", status=2) from error
    if not isinstance(settings, dict):
        raise UserError(f"{file} holds no settings: write lines such as runs_dir: ~/runs.", status=2)
    yield from ((key, value) for key, value in dotted_items(settings) if not isinstance(value, dict))


def _check_value(file: Path, key: str, value: Any) -> str:
    """Return the value of a setting as it would be typed. Raises UserError if a user may not set it."""
    if key not in _KEYS and not key.startswith(_LAUNCHER):
        near = did_you_mean(key, _KEYS)
        raise UserError(f"{file}: {key} is no setting of a user.{near} Choose {', '.join(_KEYS)}.", status=2)
    if key.startswith(_LAUNCHER) and isinstance(value, int | float | str):
        return str(value)
    if not isinstance(value, str) or not value:
        raise UserError(f"{file}: {key}={value} is not possible: give a text.", status=2)
    if key in ("data.root", "runs_dir"):
        path = Path(value).expanduser()
        if not path.is_absolute():
            raise UserError(
                f"{file}: {key}={value} depends on the folder of a command: give an absolute path.", status=2
            )
        return str(path)
    if key == "logger" and not (CONFIG_DIR / "logger" / f"{value}.yaml").is_file():
        choices = sorted(path.stem for path in (CONFIG_DIR / "logger").glob("*.yaml"))
        raise UserError(f"{file}: there is no logger={value}: choose {', '.join(choices)}.", status=2)
    return value
