"""A file of conf/sweep: what it sets beside the values that it varies."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fashion_cnn.overrides import key_of, quoted


def spelled_out(overrides: Iterable[str]) -> list[str]:
    """The overrides, `sweep=NAME` replaced by what that file sets: `data.train_fraction=0.2 test=false`.

    They make the same training without it. What is typed beside it takes the place of what the file says.
    """
    overrides = [*overrides]
    typed = {key_of(override) for override in overrides}
    spelled = []
    for override in overrides:
        if key_of(override) == "sweep":
            settings = _settings_of(override.partition("=")[2].strip("'\""), overrides)
            spelled += [setting for setting in settings if key_of(setting) not in typed]
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
            values = _flat(file) if file else ()
            return [*groups, *(f"{'' if _has(there, key) else '+'}{key}={_typed(value)}" for key, value in values)]
    return []


def _groups_of(overrides: Iterable[str]) -> DictConfig:
    """The config of a training with the chosen groups alone."""
    loader = GlobalHydra.instance().config_loader()
    groups = {*loader.list_groups("")} - {"sweep"}
    chosen = [override for override in overrides if key_of(override) in groups]
    return loader.load_configuration("train", chosen, RunMode.RUN, from_shell=False)


def _has(config: DictConfig, key: str) -> bool:
    absent = object()
    return OmegaConf.select(config, key, default=absent) is not absent


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _typed(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    text = str(value)
    return text if re.fullmatch(r"[\w./+-]+|\$\{.*\}|\{\}", text) else quoted(text)
