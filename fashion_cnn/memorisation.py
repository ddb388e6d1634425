"""Memorisation and influence of each training image: `python -m fashion_cnn.memorisation runs=runs/memorisation`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import as_strings, install_command
from fashion_cnn.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def memorisation(config: DictConfig) -> None:
    """Analyse the runs of `config.runs`, write tables, figures and report, and print a summary.

    Raises:
        UserError: if the runs hold no answers to images that they were not trained on, or an option is impossible.
    """
    import os

    from fashion_cnn.analysis.memorisation import choose_runs, has_cleanlab
    from fashion_cnn.analysis.memorisation_report import analyse, write_report
    from fashion_cnn.runs import display_path, find_finished_run, find_runs
    from fashion_cnn.terminal import print_text

    for name, low, high in (
        ("memorised", 0.0, 1.0),
        ("false_discovery_rate", 0.0, 1.0),
        ("precision", 0.0, 1.0),
        ("duplicates", 0.5, 1.0),
    ):
        if not low < config[name] <= high:
            raise UserError(
                f"{name}={config[name]} is not possible: give a number above {low:g}, up to {high:g}.", status=2
            )
    ordinary = None if config.run is None else find_finished_run(config.run, Path(config.runs_dir))
    runs = find_runs(as_strings(config.runs))
    parent = Path(os.path.commonpath([run.path.absolute().parent for run in runs]))
    folder = Path(config.out).expanduser() if config.out else parent / "analysis"
    chosen, notes = choose_runs(runs)
    if not has_cleanlab():
        notes.append(
            "cleanlab is not installed: the list of label errors is without the issues and the noise matrix of "
            f"confident learning. {install_command('memorisation')} installs it."
        )
    analysis = analyse(
        chosen,
        ordinary,
        data_root=config.data.root,
        memorised=config.memorised,
        false_discovery_rate=config.false_discovery_rate,
        precision=config.precision,
        duplicates_above=config.duplicates,
    )
    summary = write_report(analysis, folder, notes)
    print_text(summary)
    print_text(f"Report: {display_path(folder / 'report.md')}")


def main() -> None:
    """Run the command line."""
    run_command("memorisation", memorisation)


if __name__ == "__main__":
    main()
