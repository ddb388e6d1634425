"""Checks of options and optional packages, made before large packages are imported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.errors import UserError, install_command, require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omegaconf import DictConfig

    from fashion_cnn.retrieval.catalogue import CatalogueMetadata
    from fashion_cnn.runs import Run

__all__ = [
    "COMMANDS_WITH_GROUPS",
    "as_strings",
    "check_choice",
    "check_class_weight",
    "check_images",
    "check_invert",
    "check_reject",
    "install_command",
    "require",
    "run_and_metadata",
]


# Commands whose config has the groups of a training; Hydra prints their help.
COMMANDS_WITH_GROUPS = ("train", "tune", "find_learning_rate")


def check_choice(config: DictConfig, option: str, choices: Sequence[str]) -> None:
    """Raise UserError unless the value of `option` is one of its choices."""
    if config[option] not in choices:
        raise UserError(f"{option}={config[option]} is not possible: choose {', '.join(choices)}.", status=2)


def check_images(config: DictConfig, *, required: bool = False) -> None:
    """Raise UserError if `images` is empty, which would mean the current folder, or missing although `required`."""
    if (config.images is None and required) or (config.images is not None and not config.images):
        problem = " is missing" if config.images is None else "= is empty"
        raise UserError(f"images{problem}: give images=PATH, a file, a folder, a glob or a list of these.", status=2)


def check_invert(config: DictConfig) -> None:
    """Raise UserError unless `invert` is a choice of `fashion_cnn.pictures.Preparation`."""
    check_choice(config, "invert", ("auto", "never", "always"))


def check_reject(reject: float) -> None:
    """Raise UserError unless `reject`, a share of the validation images, is in [0, 1)."""
    if not 0 <= reject < 1:
        raise UserError(
            f"reject={reject} is not possible: give a share of the validation images, 0 to below 1.",
            status=2,
        )


def check_class_weight(config: DictConfig) -> None:
    """Raise UserError unless `class_weight` is in [0, 1]."""
    if not 0 <= config.class_weight <= 1:
        raise UserError(f"class_weight={config.class_weight} is not possible: give a number from 0 to 1.", status=2)


def as_strings(option: object | None) -> tuple[str, ...]:
    """Convert an option to strings: None to none, a single value to one, a list to all of its values."""
    if option is None:
        return ()
    return tuple(map(str, option)) if isinstance(option, Iterable) and not isinstance(option, str) else (str(option),)


def run_and_metadata(config: DictConfig, find: Callable[[str, Path], Run]) -> tuple[Run, CatalogueMetadata | None]:
    """Find the run, or with `catalogue` the network of a catalogue.

    Args:
        config: options `run`, `runs_dir` and `catalogue`.
        find: finds a run by the options `run` and `runs_dir`.

    Returns:
        The run and None; for the catalogue of a pretrained network its folder in place of the run, and its metadata.

    Raises:
        UserError: if there is no such run or catalogue.
    """
    runs_dir = Path(str(config.runs_dir)).expanduser()
    if config.catalogue is None:
        return find(config.run, runs_dir), None
    require("search", "lancedb")
    from fashion_cnn.retrieval.catalogue import find_network_of_catalogue

    return find_network_of_catalogue(config.run, config.catalogue, runs_dir)
