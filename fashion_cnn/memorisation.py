"""Memorisation, influence and label errors of a sweep: `python -m fashion_cnn.memorisation runs=runs/memorisation`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import as_strings, install_command
from fashion_cnn.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def memorisation(config: DictConfig) -> None:
    """Analyse a sweep over subsets of the training images, write a report, and print a summary.

    Args:
        config: the options, as `conf/memorisation.yaml` lists them.

    Raises:
        UserError: if the runs store no predictions of held-out training images, or an option is out of range.
    """
    from fashion_cnn.analysis.memorisation import choose_runs, has_cleanlab
    from fashion_cnn.analysis.memorisation_report import analyse, write_report
    from fashion_cnn.runs import common_folder, display_path, find_finished_run, find_runs
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
    folder = Path(config.out).expanduser() if config.out else common_folder(runs) / "analysis"
    chosen, notes = choose_runs(runs)
    if not has_cleanlab():
        notes.append(
            "cleanlab is not installed: the report has neither label issues nor a noise matrix by confident learning. "
            f"{install_command('memorisation')} installs it."
        )
    analysis = analyse(
        chosen,
        ordinary,
        data_root=config.data.root,
        threshold=config.memorised,
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
