"""Evaluate a network's search vectors: `python -m fashion_cnn.evaluate_search run=latest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import as_strings, check_choice, check_class_weight
from fashion_cnn.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fashion_cnn.retrieval.evaluation import AlteredCopies
    from fashion_cnn.runs import Run


def evaluate_search(config: DictConfig) -> list[dict[str, Any]]:
    """Evaluate the search vectors of each run and write the results into its directory.

    Args:
        config: `conf/evaluate_search.yaml` with the overrides.

    Returns:
        The results of each run.

    Raises:
        UserError: for an invalid option, or if a run or its split does not exist.
    """
    altered = _check(config)
    from fashion_cnn.inference.network import TrainedNetwork, instantiate_data
    from fashion_cnn.models.hardware import keep_freed_memory
    from fashion_cnn.retrieval import evaluation
    from fashion_cnn.retrieval.report import outcome_of, write_outcome
    from fashion_cnn.runs import check_links
    from fashion_cnn.terminal import progress_bar

    keep_freed_memory()
    outcomes = []
    runs = _runs(config)
    for run in runs:
        check_links(run.path, run.search_evaluation.name)
    for number, run in enumerate(runs, start=1):
        images = evaluation.load_search_images(instantiate_data(run, config.data.root), config.split, config.queries)
        network = TrainedNetwork(run, flip_average=config.flip_average, needs_embeddings=True)
        with progress_bar("searching" if len(runs) == 1 else f"run {number} of {len(runs)}") as progress:
            result = evaluation.evaluate_search(
                network,
                images,
                class_weight=config.class_weight,
                altered=altered,
                baselines=config.baselines,
                seed=config.seed,
                progress=progress,
            )
        outcome = outcome_of(run, config.split, network, images, result, altered, config.class_weight)
        in_run = run.search_evaluation / config.split
        write_outcome(outcome, Path(config.out).expanduser() if config.out and len(runs) == 1 else in_run)
        outcomes.append(outcome)
    return outcomes


def _check(config: DictConfig) -> AlteredCopies | None:
    from fashion_cnn.evaluation.corruptions import CORRUPTIONS, SEVERITIES
    from fashion_cnn.retrieval.evaluation import AlteredCopies

    check_class_weight(config)
    check_choice(config, "split", ("test", "val"))
    check_choice(config, "format", ("table", "json"))
    for option, minimum in (("queries", 1), ("instances", 0)):
        value = config[option]
        if not (isinstance(value, int) and value >= minimum) and not (option == "queries" and value is None):
            raise UserError(f"{option}={value} is not possible: give {minimum} or more.", status=2)
    if not config.instances:
        return None
    names = as_strings(config.altered_by)
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise UserError(f"altered_by={unknown[0]} is not possible: there are {', '.join(CORRUPTIONS)}.", status=2)
    if config.severity not in SEVERITIES:
        raise UserError(f"severity={config.severity} is not possible: give 1 (mild) to 5 (strong).", status=2)
    return AlteredCopies(config.instances, names, config.severity)


def _runs(config: DictConfig) -> list[Run]:
    """Find the runs that `run=` names, and the finished runs in the folders and globs that it names."""
    from fashion_cnn.runs import find_finished_runs, find_runs

    if config.run is None:
        return find_finished_runs(None, Path(config.runs_dir))
    names: list[str] = []
    for name in as_strings(config.run):
        path = Path(name).expanduser()
        holds_runs = path.is_dir() and not (path / "config.yaml").is_file()
        if holds_runs or (set(name) & set("*?[") and not path.exists()):
            finished = [str(run.path) for run in find_runs(name) if run.state == "finished"]
            if not finished:
                raise UserError(f"run={name} holds no finished run.")
            names += finished
        else:
            names.append(name)
    return find_finished_runs(names[0] if len(names) == 1 else names, Path(config.runs_dir))


def _evaluate_and_print(config: DictConfig) -> None:
    from fashion_cnn.retrieval.evaluation import summarise_runs
    from fashion_cnn.retrieval.report import print_outcome, print_summary, write_summary
    from fashion_cnn.runs import format_json

    outcomes = evaluate_search(config)
    summary = summarise_runs(outcomes) if len(outcomes) > 1 else None
    if summary and config.out:
        write_summary(summary, Path(config.out).expanduser())
    if config.format == "json":
        print(format_json(outcomes[0] if summary is None else {"summary": summary, "runs": outcomes}))
    elif summary is None:
        print_outcome(outcomes[0])
    else:
        print_summary(summary)


def main() -> None:
    """Run the command."""
    run_command("evaluate_search", _evaluate_and_print)


if __name__ == "__main__":
    main()
