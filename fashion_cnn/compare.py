"""Compare runs: `python -m fashion_cnn.compare runs=runs/sweep/…` shows the effect of a setting on the gap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import as_strings

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compare(config: DictConfig) -> None:
    """Compare the runs of `config.runs`, write table and plots, and print the table.

    Raises:
        UserError: if there is no run, or no run is finished.
    """
    from fashion_cnn.analysis.comparison import compare as compare_runs
    from fashion_cnn.analysis.comparison_report import write_comparison
    from fashion_cnn.cli.console import print_comparison
    from fashion_cnn.runs import common_folder, find_runs

    runs = find_runs(as_strings(config.runs))
    comparison = compare_runs(runs)
    folder = Path(config.out).expanduser() if config.out else common_folder(runs) / "comparison"
    print_comparison(comparison, *write_comparison(comparison, folder))


def main() -> None:
    """Run the command."""
    run_command("compare", compare)


if __name__ == "__main__":
    main()
