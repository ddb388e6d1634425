"""List and clear the cache of decoded pictures: `python -m fashion_cnn.cache`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.errors import UserError, pluralize

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from omegaconf import DictConfig

    from fashion_cnn.data.picture_cache import CacheEntry


def cache(config: DictConfig) -> None:
    """Remove what `config` asks for, and print what is left.

    Args:
        config: `conf/cache.yaml` with the overrides.

    Raises:
        UserError: for an invalid option.
    """
    limit = 0 if config.remove_all else config.limit_gb
    if limit is not None and (not isinstance(limit, int | float) or limit < 0):
        raise UserError(f"limit_gb={limit} is not possible: give a size in GB, 0 or more.", status=2)
    from fashion_cnn.data.picture_cache import cache_folder, list_entries, remove_entries

    folder = cache_folder()
    if limit is not None:
        removed = remove_entries(folder, max_bytes=int(limit * 1e9))
        print(f"Removed {_count(removed)}.")
    _print_entries(list_entries(folder), folder)


def _count(entries: Sequence[CacheEntry]) -> str:
    return f"{pluralize(len(entries), 'cache')}, {_megabytes(sum(entry.size for entry in entries))}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _print_entries(entries: Sequence[CacheEntry], folder: Path) -> None:
    from fashion_cnn.terminal import print_table

    if not entries:
        print(f"{folder} holds no decoded pictures.")
        return
    headings = ("pictures", "content", "size", "last used", "in use")
    rows = [
        (
            entry.root or "unknown",
            "pixels" if any(file.suffix == ".npy" for file in entry.files) else "list of files",
            _megabytes(entry.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
            "yes" if entry.is_in_use() else "",
        )
        for entry in reversed(entries)
    ]
    print_table(headings, rows, right=("size",), title=f"{folder}: {_count(entries)}", wide=True)


def main() -> None:
    """Run the command."""
    run_command("cache", cache)


if __name__ == "__main__":
    main()
