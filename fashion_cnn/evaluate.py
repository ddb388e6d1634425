"""Measure a trained network from its run directory alone: `python -m fashion_cnn.evaluate run=latest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_choice
from fashion_cnn.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig

    from fashion_cnn.runs import Run


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Measure `config.run` on `config.split`, write the figures into the run's directory and return them.

    Raises UserError where there is no such run or split, or its checkpoint is not its own.
    """
    from fashion_cnn.evaluation.evaluate import evaluate_runs, evaluation_record, write_evaluation
    from fashion_cnn.runs import display_path, find_finished_runs
    from fashion_cnn.training.session import quieten_lightning

    check_choice(config, "split", ("test", "val"))
    check_choice(config, "format", ("table", "json"))
    if config.baseline and not config.robustness:
        raise UserError(f"baseline={config.baseline} is for robustness=true: say it too, or leave both out.", status=2)
    runs = find_finished_runs(config.run, Path(config.runs_dir))
    baseline = None
    if config.baseline:
        from fashion_cnn.evaluation.robustness_report import read_baseline

        baseline = read_baseline(config.baseline, config.split, Path(config.runs_dir))
    quieten_lightning()
    evaluation = evaluate_runs(runs, config.split, data_root=config.data.root)
    record = evaluation_record(runs, evaluation)
    folder = Path(config.out).expanduser() if config.out else _folder_of(runs) / config.split
    write_evaluation(record, evaluation, folder)
    if config.robustness:
        from fashion_cnn.evaluation.robustness_report import write_robustness_report
        from fashion_cnn.terminal import progress_bar

        with progress_bar("corruptions") as progress:
            record["robustness"] = write_robustness_report(evaluation, folder, baseline=baseline, progress=progress)
    return record | {"written_to": str(display_path(folder))}


def _folder_of(runs: Sequence[Run]) -> Path:
    """In the run, or beside the runs that are measured as one."""
    import hashlib
    import os

    if len(runs) == 1:
        return runs[0].evaluation
    beside = Path(os.path.commonpath([run.path.absolute().parent for run in runs]))
    # Each ensemble has a folder of its own, the same every time.
    members = hashlib.sha256("\n".join(sorted(str(run.path.absolute()) for run in runs)).encode()).hexdigest()
    return beside / f"ensemble-{members[:6]}"


def _evaluate_and_tell(config: DictConfig) -> None:
    import json

    from fashion_cnn.cli.console import print_evaluation

    outcome = evaluate(config)
    if config.format == "json":
        print(json.dumps(outcome, indent=2))
    else:
        print_evaluation(outcome)


def main() -> None:
    run_command("evaluate", _evaluate_and_tell)


if __name__ == "__main__":
    main()
