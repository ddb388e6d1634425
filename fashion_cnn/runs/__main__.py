"""Print a table of all runs: `python -m fashion_cnn.runs`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fashion_cnn.runs.run import Run


def _list(config: DictConfig) -> None:
    from fashion_cnn.runs.finding import list_runs
    from fashion_cnn.terminal import print_table

    runs = list_runs(Path(config.runs_dir))
    if not runs:
        raise UserError(f"There are no runs in {Path(config.runs_dir).resolve()}: give another runs_dir=DIR.")
    headings = ("name", "run", "state", "seed", "test", "val", "gap", "time")
    print_table(headings, (_row(run, os.path.relpath(run.path, config.runs_dir)) for run in runs), right=headings[3:])


def _row(run: Run, path: str) -> list[str]:
    if run.state == "damaged":
        return ["", path, "damaged"]
    config, results = run.config(), run.results()
    return [
        str(config.get("name")),
        path,
        run.state,
        str(config.get("seed")),
        *(f"{results[name]:.2%}" if name in results else "" for name in ("test/accuracy", "val/accuracy")),
        f"{results['gap/accuracy'] * 100:+.2f}" if "gap/accuracy" in results else "",
        f"{results['seconds'] / 60:.1f} min" if "seconds" in results else "",
    ]


def main() -> None:
    """Run the command."""
    run_command("runs", _list)


if __name__ == "__main__":
    main()
