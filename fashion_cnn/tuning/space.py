"""The search space, in the words that Hydra has for sweeps."""

from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from fashion_cnn.errors import UserError


def search_space(params: Mapping[str, Any], swept: Iterable[str]) -> dict[str, BaseDistribution]:
    """What Optuna draws each key from.

    params: `key: sweep`, as a file of conf/sweep lists them. swept: typed overrides, which replace those.
    A list or `choice(a,b)` is a choice; `interval(a,b)` a range of numbers, `int(interval(a,b))` of whole ones, and
    `tag(log,interval(a,b))` of any logarithm alike; `range(a,b,step)` has steps. Raises UserError for anything else.
    """
    parsed = OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in params.items()), *swept])
    space = {override.get_key_element(): _distribution(override) for override in parsed}
    if not space:
        raise UserError(
            "There is nothing to search: leave a setting open, such as 'optimizer.lr=tag(log,interval(1e-3,1e-1))', "
            "or choose a file of conf/sweep that varies more than the seed.",
            status=2,
        )
    return space


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            log = "log" in value.tags
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=log)
            assert value.start is not None
            assert value.end is not None
            return FloatDistribution(value.start, value.end, log=log)
        if isinstance(value, RangeSweep) and isinstance(value.step, int) and isinstance(value.start, int):
            # Hydra leaves the end out, as Python does.
            return IntDistribution(value.start, int(value.stop or 0) - 1, step=value.step)
        if override.is_discrete_sweep():
            return CategoricalDistribution([*override.sweep_string_iterator()])
    except ValueError as error:
        raise UserError(f"{override.input_line} is no range to search: {error}", status=2) from error
    raise UserError(
        f"{override.input_line} leaves nothing open: give a list, choice(a,b), interval(a,b) or range(a,b,step).",
        status=2,
    )
