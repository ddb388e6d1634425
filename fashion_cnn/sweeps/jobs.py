"""The jobs that a sweep's command line comes to, and their names."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

# Of a job's directory, in characters.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Job:
    """One training of a sweep. name: of its directory. overrides: as Hydra's sweeper gives them to it."""

    name: str
    overrides: tuple[str, ...]


def jobs_of(overrides: Sequence[str], params: Mapping[str, Any]) -> tuple[list[Job], set[str]]:
    """The jobs of a sweep in the order of Hydra's basic sweeper, and the keys that all of them share.

    overrides: as typed. params: `hydra.sweeper.params`, which these come on top of.
    Raises ValueError for a sweep that cannot be listed, such as an interval.
    """
    choices = choices_of(overrides, params)
    shared = {key for key, values in choices.items() if len(values) == 1}
    combined = itertools.product(*([f"{key}={value}" for value in values] for key, values in choices.items()))
    return [Job(job_name(each, shared), each) for each in combined], shared


def choices_of(overrides: Sequence[str], params: Mapping[str, Any]) -> dict[str, list[str]]:
    """The values that each key takes, in the order of Hydra's basic sweeper; see `jobs_of`."""
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides([*(f"{k}={v}" for k, v in params.items()), *overrides]):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ValueError(f"{override.input_line} is no list of values")
        values = override.sweep_string_iterator() if override.is_sweep_override() else None
        choices[override.get_key_element()] = [*values] if values else [str(override.get_value_element_as_str())]
    return choices


def key_element(override: str) -> str:
    """The key as Hydra's sweeper has it, with the signs before it."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return parsed.get_key_element()


def job_name(overrides: Iterable[str], shared: Iterable[str] = ()) -> str:
    """A sweep job's directory: `lr-0.1_seed-1` for `optimizer.lr=0.1 seed=1`, with no sign that a shell minds.

    shared: keys that tell no job from another, and are left out.
    """
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    shared = {key.lstrip("+") for key in shared}
    names = (f"{key.lstrip('~').rpartition('.')[2]}-{_typable(value)}" for key, _, value in pairs if key not in shared)
    name = "_".join(name.rstrip("-") for name in names) or "job"
    if len(name) <= _LONGEST_NAME:
        return name
    # The end says most, since what a sweep varies tends to stand there; the digest keeps jobs apart.
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{digest}-{name[9 - _LONGEST_NAME :]}"


def _typable(value: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "-", value)
    return plain if value.startswith("-") else plain.lstrip("-")


def repeated_names(jobs: Iterable[Job]) -> list[str]:
    """The names that more than one job bears."""
    return [name for name, times in Counter(job.name for job in jobs).items() if times > 1]
