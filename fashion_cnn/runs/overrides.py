"""Overrides as people type them, `key=value`: their keys, the quotes of Hydra's grammar, and values left open."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

# Values that are paths or words, which people type with characters that Hydra's grammar gives a meaning.
QUOTED_KEYS = {
    *("data.root", "runs_dir", "resume", "init_from", "run", "runs", "images", "out", "baseline"),
    "distillation.teachers",
    *("catalogue", "products", "image", "unlike_image", "sheet", "model.network.weights"),
    *("name", "text", "remove", "like", "unlike", "category", "concept", "about"),
}
# Where things lie on this machine changes nothing about a training.
PLACES = {"data.root", "runs_dir", "resume"}
# Which run that is changes with each training, so that a command replaces it by the run's path when it begins.
LATEST_WEIGHTS = "init_from=latest"


def key_of(override: str) -> str:
    """`optimizer.lr` of `optimizer.lr=0.1`, `+optimizer.lr=0.1` and `~optimizer.lr`."""
    return override.lstrip("+~").partition("=")[0]


def makes_the_training(override: str) -> bool:
    """Whether a training is another one with it: not where things lie, nor the sweep or search it is a part of."""
    key = key_of(override)
    return key not in PLACES | {"sweep"} and not key.startswith(("tune.", "tune/"))


def quote_text(argument: str) -> str:
    """Quote the value of `key=value` for Hydra where it is a path or words, or a list `[a,b]` of these."""
    key, equals, value = argument.partition("=")
    if not equals or key_of(argument) not in QUOTED_KEYS or value in ("", "null") or "${" in value or _is_quoted(value):
        return argument
    if value[0] == "[" and value[-1] == "]" and not Path(value).exists():
        return f"{key}=[{','.join(part if _is_quoted(part) else quoted(part) for part in _parts(value[1:-1]))}]"
    return f"{key}={quoted(value)}"


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]


def _parts(listed: str) -> list[str]:
    """What the commas of a list part; one in quotes, or in the name of a file that is there, parts nothing."""
    words = listed.split(",")
    parts = []
    while words:
        candidates = (",".join(words[:count]).strip() for count in range(1, len(words) + 1))
        part = next(filter(_is_one, candidates), words[0].strip())
        parts.append(part)
        del words[: part.count(",") + 1]
    return [part for part in parts if part]


def _is_one(part: str) -> bool:
    """Whether it is one path for certain."""
    return (_is_quoted(part) and part[0] not in part[1:-1]) or Path(part).expanduser().exists()


def quoted(value: str) -> str:
    """As Hydra's grammar quotes a text, whatever is in it."""
    # In Hydra's quotes a backslash counts only before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def unquote_text(override: str) -> str:
    """What a person would type for an override that `quote_text` may have quoted."""
    key, _, value = override.partition("=")
    if key_of(override) not in QUOTED_KEYS or value[:1] != "'":
        return override
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return f"{key}={parsed.value()}"


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
