"""Compare runs: `python -m fashion_cnn.compare runs=runs/sweep/…` tells what a setting did to the gap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.command_line import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fashion_cnn.analysis.comparison import Comparison


def compare(config: DictConfig) -> None:
    """Write the table and the plots of `config.runs`, and print the table.

    Raises UserError where there is no run, or none that is finished.
    """
    import os

    from omegaconf import OmegaConf

    from fashion_cnn.analysis.comparison import compare as compare_runs
    from fashion_cnn.analysis.comparison import find_runs
    from fashion_cnn.analysis.comparison_files import write_comparison

    references = OmegaConf.to_object(config.runs) if OmegaConf.is_list(config.runs) else str(config.runs)
    runs = find_runs(references)  # type: ignore[arg-type]
    comparison = compare_runs(runs)
    common = os.path.commonpath([run.path.absolute().parent for run in runs])
    beside = Path(os.path.relpath(common)) / "comparison"
    written = write_comparison(comparison, Path(config.out).expanduser() if config.out else beside)
    _print(comparison, written)


def _print(comparison: Comparison, written: Path) -> None:
    """Print the groups of runs, those that are not finished, and where all of it was written."""
    from rich.table import Table

    from fashion_cnn.analysis.comparison import describe_unfinished, table
    from fashion_cnn.screen import wide_console

    console = wide_console()
    headings, *rows = table(comparison)
    grid = Table()
    for place, heading in enumerate(headings):
        # What tells the groups apart, then figures.
        grid.add_column(heading, justify="left" if place < max(len(comparison.factors), 1) else "right")
    for row in rows:
        grid.add_row(*row)
    console.print(grid)
    for run in comparison.unfinished:
        said = f"Not finished, so left out: {run.path}: {describe_unfinished(run)}"
        console.print(said, highlight=False, soft_wrap=True)
    console.print(f"Table and plots: {written}", highlight=False, soft_wrap=True)


def main() -> None:
    run_command("compare", compare)


if __name__ == "__main__":
    main()
