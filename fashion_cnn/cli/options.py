"""Checks of options and optional packages, made before anything large is imported."""

import importlib.util
from collections.abc import Sequence

from omegaconf import DictConfig

from fashion_cnn.errors import UserError


def check_choice(config: DictConfig, option: str, choices: Sequence[str]) -> None:
    """Raises UserError where an option is none of its choices."""
    if config[option] not in choices:
        raise UserError(f"{option}={config[option]} is not possible: choose {', '.join(choices)}.", status=2)


def check_images(config: DictConfig, *, required: bool = False) -> None:
    """Raises UserError where `images` is given and names nothing, which would be the current folder; where `required`,
    also where it is not given.
    """
    if (config.images is None and required) or (config.images is not None and not config.images):
        missing = " is missing" if config.images is None else "= names nothing"
        raise UserError(f"images{missing}: say images=PATH, a file, a folder, a glob or a list of these.", status=2)


def check_invert(config: DictConfig) -> None:
    """Raises UserError where `invert` is none that `Preparation` knows."""
    check_choice(config, "invert", ("auto", "never", "always"))


def check_reject(reject: float) -> None:
    """Raises UserError where it is no share that `calibrate` can turn away."""
    if not 0 <= reject < 1:
        raise UserError(
            f"reject={reject} is not possible: give a share of the validation images, 0 up to, but not, 1.",
            status=2,
        )


def check_class_weight(config: DictConfig) -> None:
    """Raises UserError where `class_weight` is no share."""
    if not 0 <= config.class_weight <= 1:
        raise UserError(f"class_weight={config.class_weight} is not possible: give a number from 0 to 1.", status=2)


def require(extra: str, *packages: str) -> None:
    """Raise UserError, with what to type, where one of the packages of an extra is not installed."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise UserError(
            f"This needs {', '.join(missing)}: pip install -c scripts/constraints.txt -e '.[{extra}]'",
            status=1,
        )
