"""The command line: overrides `key=value`, their quoting for Hydra's grammar, swept values, and flags of configs."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from fashion_cnn.errors import UserError, missing_data_root

_PACKAGE = Path(__file__).parent.parent
# The folder of the config files. In the wheel conf/ lies inside the package, in a checkout beside it.
CONFIG_DIR = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
# Folder of the data sets, which is created where it does not exist.
DEFAULT_ROOT = Path("data")
# Keys whose values are paths or text, which may contain characters that Hydra's grammar interprets.
QUOTED_KEYS = {
    *("data.exclude", "data.relabel"),
    *("data.root", "runs_dir", "resume", "init_from", "run", "runs", "images", "out", "baseline"),
    "distillation.teachers",
    *("catalogue", "products", "image", "unlike_image", "sheet", "model.network.weights"),
    *("trust", "name", "text", "remove", "like", "unlike", "category", "concept", "about"),
    *("api_keys", "allow_hosts", "allow_origins", "trusted_proxies", "hidden_columns", "currency"),
}
# Keys of paths and threads of this machine, and those that open runs, which do not change what is trained.
MACHINE_KEYS = {"data.root", "data.download", "runs_dir", "threads", "resume", "trust"}
# Flags of Hydra that take a value.
_FLAGS_WITH_VALUE = {
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--package",
    "-p",
    "--cfg",
    "-c",
}
# Replaced by the path of the newest finished run when a training starts.
LATEST_WEIGHTS = "init_from=latest"


def override_key(override: str) -> str:
    """Return the key of an override: `optimizer.lr` of `optimizer.lr=0.1`, `+optimizer.lr=0.1` or `~optimizer.lr`."""
    return override.lstrip("+~").partition("=")[0]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Shorten keys for a heading: `lr` for `optimizer.lr`, unless another key ends in it, or it is in a sub-group."""
    last = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(last.values())
    return {key: name if counts[name] == 1 and key.count(".") == 1 else key for key, name in last.items()}


def round_value(value: object) -> str:
    """Format a setting, a number with four digits."""
    text = str(value)
    try:
        return text if len(text) < 8 else f"{float(text):.4g}"
    except ValueError:
        return text


def affects_training(override: str) -> bool:
    """Return whether an override can change what is trained: not paths, nor options of a sweep or search."""
    key = override_key(override)
    return key not in MACHINE_KEYS | {"sweep"} and not key.startswith(("tune.", "tune/"))


def check_epochs(config: Any) -> None:
    """Raise UserError unless a training's config has a whole number of epochs, at least 1."""
    if not isinstance(config.trainer.max_epochs, int) or config.trainer.max_epochs < 1:
        raise UserError(
            f"trainer.max_epochs={config.trainer.max_epochs} is not possible: give a whole number, 1 or more.", status=2
        )


def check_data_root(config: Any) -> None:
    """Raise UserError if the folder of a new training's images does not exist, as its data module does later."""
    data = config.data
    module = str(data.get("_target_"))
    if not module.startswith("fashion_cnn.") or not isinstance(root := data.get("root"), str):
        return
    folder = Path(root).expanduser()
    if module.endswith(".ImageFolderDataModule"):
        if not folder.is_dir():
            raise missing_data_root(folder)
        return
    name = data.get("dataset", "Fashion-MNIST")
    if name and data.get("download") is None and folder != DEFAULT_ROOT and not folder.exists():
        raise missing_data_root(folder, name)


def quote_override(argument: str) -> str:
    """Quote the value of `key=value` for Hydra if the key is in QUOTED_KEYS; in a list `[a,b]` quote each item."""
    key, equals, value = argument.partition("=")
    if not equals or override_key(argument) not in QUOTED_KEYS or value in ("", "null") or "${" in value:
        return argument
    if _is_quoted(value):
        return argument
    if value[0] == "[" and value[-1] == "]" and not Path(value).exists():
        items = _split_list(value[1:-1])
        return f"{key}=[{','.join(item if _is_quoted(item) else quote_value(item) for item in items)}]"
    return f"{key}={quote_value(value)}"


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]


def _split_list(text: str) -> list[str]:
    """Split at commas, except those in quotes or in the name of an existing file."""
    words = text.split(",")
    items = []
    while words:
        candidates = (",".join(words[:count]).strip() for count in range(1, len(words) + 1))
        item = next(filter(_is_single_item, candidates), words[0].strip())
        items.append(item)
        del words[: item.count(",") + 1]
    return [item for item in items if item]


def _is_single_item(text: str) -> bool:
    return (_is_quoted(text) and text[0] not in text[1:-1]) or Path(text).expanduser().exists()


def quote_value(value: str) -> str:
    """Quote any text for Hydra's grammar, in which a backslash has a meaning only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def unquote_override(override: str) -> str:
    """Reverse `quote_override`, for display and for repeating a command."""
    key, _, value = override.partition("=")
    if override_key(override) not in QUOTED_KEYS or value[:1] != "'":
        return override
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return f"{key}={parsed.value()}"


def split_swept(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the arguments that sweep a value, such as `optimizer.lr=interval(0.001,0.1)`, from all others."""
    swept = [argument for argument in arguments if "=" in argument and _is_swept(argument)]
    return swept, [argument for argument in arguments if argument not in swept]


def _is_swept(argument: str) -> bool:
    try:
        (override,) = OverridesParser.create().parse_overrides([argument])
    except OverrideParseException:
        return False  # Hydra reports the error later.
    return override.is_sweep_override()


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate flags, with their values, from overrides: argparse does not accept overrides on both sides of a flag."""
    flags: list[str] = []
    overrides: list[str] = []
    is_value = False
    for argument in arguments:
        (flags if is_value or argument.startswith("-") else overrides).append(argument)
        is_value = not is_value and argument in _FLAGS_WITH_VALUE
    return flags, overrides


def config_flags(hydra_config: Any, config_name: str) -> list[str]:
    """List the flags with which a command finds the same config files from any directory.

    Args:
        hydra_config: section `hydra` of the config of a command.
        config_name: the command's file in conf/, without the suffix.
    """
    flags = []
    for source in hydra_config.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", source.path]
    if hydra_config.job.config_name != config_name:
        flags += ["--config-name", hydra_config.job.config_name]
    return flags + [override for override in hydra_config.overrides.hydra if override.startswith("hydra.searchpath=")]
