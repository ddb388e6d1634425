"""Packages that only some commands need: the extras of pyproject.toml."""

import importlib.util

from fashion_cnn.errors import UserError


def require(extra: str, *packages: str) -> None:
    """Raise UserError, with what to type, where one of the packages of an extra is not installed."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise UserError(
            f"This needs {', '.join(missing)}: pip install -c scripts/constraints.txt -e '.[{extra}]'",
            status=1,
        )
