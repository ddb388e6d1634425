"""Evaluate a trained network from its run directory: `python -m fashion_cnn.evaluate run=latest`."""

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
    """Evaluate `config.run` on `config.split`, and write the metrics and their plots into the run's directory.

    Returns:
        The metrics, as in `evaluation.json`, with those of the robustness if `config.robustness`.

    Raises:
        UserError: if there is no such run or split, or the checkpoint does not belong to the run.
    """
    from fashion_cnn.evaluation.evaluate import evaluate_runs, evaluation_record, write_evaluation
    from fashion_cnn.runs import check_links, display_path, find_finished_runs
    from fashion_cnn.training.session import quieten_lightning

    check_choice(config, "split", ("test", "val"))
    check_choice(config, "format", ("table", "json"))
    if config.baseline and not config.robustness:
        raise UserError(f"baseline={config.baseline} needs robustness=true: add it, or drop baseline.", status=2)
    runs = find_finished_runs(config.run, Path(config.runs_dir))
    baseline = None
    if config.baseline:
        from fashion_cnn.evaluation.robustness_report import read_baseline

        baseline = read_baseline(config.baseline, config.split, Path(config.runs_dir))
    if not config.out:
        folder = _default_folder(runs)
        check_links(folder.parent, folder.name)
    quieten_lightning()
    evaluation = evaluate_runs(runs, config.split, data_root=config.data.root)
    record = evaluation_record(runs, evaluation)
    folder = Path(config.out).expanduser() if config.out else _default_folder(runs) / config.split
    write_evaluation(record, evaluation, folder)
    if config.robustness:
        from fashion_cnn.evaluation.robustness_report import write_robustness_report
        from fashion_cnn.terminal import progress_bar

        with progress_bar("corruptions") as progress:
            record["robustness"] = write_robustness_report(evaluation, folder, baseline=baseline, progress=progress)
    return record | {"written_to": str(display_path(folder))}


def _default_folder(runs: Sequence[Run]) -> Path:
    """A directory in the run, or one beside the runs of an ensemble."""
    import hashlib

    from fashion_cnn.runs import common_folder

    if len(runs) == 1:
        return runs[0].evaluation
    # The same name for the same runs, in any order.
    members = hashlib.sha256("\n".join(sorted(str(run.path.absolute()) for run in runs)).encode()).hexdigest()
    return common_folder(runs) / f"ensemble-{members[:6]}"


def _evaluate_and_print(config: DictConfig) -> None:
    from fashion_cnn.cli.console import print_evaluation
    from fashion_cnn.runs import format_json

    record = evaluate(config)
    if config.format == "json":
        print(format_json(record))
    else:
        print_evaluation(record)


def main() -> None:
    """Run the command line."""
    run_command("evaluate", _evaluate_and_print)


if __name__ == "__main__":
    main()
