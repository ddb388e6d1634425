"""Measure a network's vectors as a product search: `python -m fashion_cnn.evaluate_search run=latest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_choice, check_class_weight
from fashion_cnn.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fashion_cnn.retrieval.evaluation import AlteredCopies
    from fashion_cnn.runs import Run


def evaluate_search(config: DictConfig) -> list[dict[str, Any]]:
    """Measure each run of `config.run`, write the figures into its directory and return them, a record a run.

    Raises UserError for a mistake in the options, and where there is no such run or split.
    """
    altered = _check(config)
    from fashion_cnn.inference.network import TrainedNetwork, instantiate_data
    from fashion_cnn.models.hardware import keep_freed_memory
    from fashion_cnn.retrieval.evaluation import evaluate_search as measure
    from fashion_cnn.retrieval.evaluation import load_search_images
    from fashion_cnn.retrieval.report import outcome_of, write_outcome
    from fashion_cnn.terminal import progress_bar

    keep_freed_memory()
    outcomes = []
    runs = _runs(config)
    for number, run in enumerate(runs, start=1):
        images = load_search_images(instantiate_data(run, config.data.root), config.split, config.queries)
        network = TrainedNetwork(run, flip_average=config.flip_average)
        label = "searching" if len(runs) == 1 else f"run {number} of {len(runs)}"
        with progress_bar(label) as progress:
            result = measure(
                network,
                images,
                class_weight=config.class_weight,
                altered=altered,
                baselines=config.baselines,
                seed=config.seed,
                progress=progress,
            )
        outcome = outcome_of(run, config.split, network, images, result, altered, config.class_weight)
        own = run.search_evaluation / config.split
        write_outcome(outcome, Path(config.out).expanduser() if config.out and len(runs) == 1 else own)
        outcomes.append(outcome)
    return outcomes


def _check(config: DictConfig) -> AlteredCopies | None:
    from fashion_cnn.evaluation.corruptions import CORRUPTIONS, SEVERITIES
    from fashion_cnn.retrieval.evaluation import AlteredCopies

    check_class_weight(config)
    check_choice(config, "split", ("test", "val"))
    check_choice(config, "format", ("table", "json"))
    for key, least in (("queries", 1), ("instances", 0)):
        value = config[key]
        if not (isinstance(value, int) and value >= least) and not (key == "queries" and value is None):
            raise UserError(f"{key}={value} is not possible: give {least} or more.", status=2)
    if not config.instances:
        return None
    names = [config.altered_by] if isinstance(config.altered_by, str) else list(config.altered_by or ())
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise UserError(f"altered_by={unknown[0]} is not possible: there are {', '.join(CORRUPTIONS)}.", status=2)
    if config.severity not in SEVERITIES:
        raise UserError(f"severity={config.severity} is not possible: give 1 (mild) to 5 (strong).", status=2)
    return AlteredCopies(config.instances, tuple(names), config.severity)


def _runs(config: DictConfig) -> list[Run]:
    """What `run=` names: runs, and the finished ones of folders and globs."""
    from fashion_cnn.analysis.comparison import find_runs
    from fashion_cnn.runs import find_finished_runs

    if config.run is None:
        return find_finished_runs(None, Path(config.runs_dir))
    references: list[str] = [config.run] if isinstance(config.run, str) else list(config.run)
    named: list[str] = []
    for one in references:
        path = Path(one).expanduser()
        holds_runs = path.is_dir() and not (path / "config.yaml").is_file()
        if holds_runs or (set(one) & set("*?[") and not path.exists()):
            finished = [str(run.path) for run in find_runs(one) if run.state == "finished"]
            if not finished:
                raise UserError(f"run={one} holds no finished run.")
            named += finished
        else:
            named.append(one)
    return find_finished_runs(named if len(named) > 1 else named[0] if named else [], Path(config.runs_dir))


def _evaluate_and_tell(config: DictConfig) -> None:
    import json

    from fashion_cnn.retrieval.evaluation import summarise_runs
    from fashion_cnn.retrieval.report import print_outcome, print_summary, write_summary

    outcomes = evaluate_search(config)
    summary = summarise_runs(outcomes) if len(outcomes) > 1 else None
    if summary and config.out:
        write_summary(summary, Path(config.out).expanduser())
    if config.format == "json":
        print(json.dumps(outcomes[0] if summary is None else {"summary": summary, "runs": outcomes}, indent=2))
        return
    if summary is None:
        print_outcome(outcomes[0])
    else:
        print_summary(summary)


def main() -> None:
    run_command("evaluate_search", _evaluate_and_tell)


if __name__ == "__main__":
    main()
