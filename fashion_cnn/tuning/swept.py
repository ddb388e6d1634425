"""The settings that a command line leaves open, for a search to fill in."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException


def take_swept(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part a command line in what it leaves open, such as `optimizer.lr=interval(0.001,0.1)`, and all else."""
    swept = [argument for argument in arguments if "=" in argument and _is_swept(argument)]
    return swept, [argument for argument in arguments if argument not in swept]


def _is_swept(argument: str) -> bool:
    try:
        (override,) = OverridesParser.create().parse_overrides([argument])
    except OverrideParseException:
        return False  # Hydra will say what is wrong with it.
    return override.is_sweep_override()
