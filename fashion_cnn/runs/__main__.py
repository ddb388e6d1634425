"""List all runs: `python -m fashion_cnn.runs`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fashion_cnn.cli.main import run_command
from fashion_cnn.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _list(config: DictConfig) -> None:
    from rich.table import Table

    from fashion_cnn.runs.finding import list_runs
    from fashion_cnn.terminal import wide_console

    runs = list_runs(Path(config.runs_dir))
    if not runs:
        raise UserError(f"There are no runs in {Path(config.runs_dir).resolve()}: say runs_dir=DIR.")
    table = Table()
    for heading in ("name", "run", "state", "seed", "test", "val", "gap", "time"):
        justify: Literal["left", "right"] = "right" if heading in ("test", "val", "gap", "time", "seed") else "left"
        # A path that is cut cannot be copied.
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading not in ("name", "run"))
    for run in runs:
        if run.state == "damaged":
            table.add_row("", os.path.relpath(run.path, config.runs_dir), "damaged")
            continue
        results = run.results()
        settings = run.config()
        table.add_row(
            str(settings.get("name")),
            os.path.relpath(run.path, config.runs_dir),
            run.state,
            str(settings.get("seed")),
            *(f"{results[name]:.2%}" if name in results else "" for name in ("test/accuracy", "val/accuracy")),
            f"{results['gap/accuracy'] * 100:+.2f}" if "gap/accuracy" in results else "",
            f"{results['seconds'] / 60:.1f} min" if "seconds" in results else "",
        )
    wide_console().print(table)


def main() -> None:
    run_command("runs", _list)


if __name__ == "__main__":
    main()
