"""A sweep on the command line: its jobs are listed and checked before the first, and compared after the last."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from fashion_cnn.cli.errors import check_values, exit_with
from fashion_cnn.errors import UserError
from fashion_cnn.runs import display_path
from fashion_cnn.sweeps.jobs import Job, jobs_of, repeated_names
from fashion_cnn.sweeps.sweep import Sweep, pins, task_with_jobs_of_before, with_weights_named


class SweepStart(Callback):
    """Hydra calls it in the process that the sweep was started from; `sweep` is then the one that runs there."""

    sweep: ClassVar[Sweep | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        params = {str(key): value for key, value in (config.hydra.sweeper.get("params") or {}).items()}
        path = Path(str(config.hydra.sweep.dir)).expanduser().absolute()
        try:
            task = with_weights_named(path, config.hydra.overrides.task, Path(str(config.runs_dir)).expanduser())
            task = task_with_jobs_of_before(path, task, params)
            jobs, shared = jobs_of(task, params)
            _check_values(jobs, config.hydra.overrides.hydra)
        except UserError as error:
            # Hydra would make a warning of it.
            exit_with(str(error), error.status)
        except ValueError as error:
            exit_with(f"{error}: a sweep tries each of a list of values, such as optimizer.lr=1e-3,1e-2.", 2)
        if repeated := repeated_names(jobs):
            exit_with(f"Two jobs of this sweep would both be called {repeated[0]}: give values that differ in more.", 2)
        sweep = Sweep(path, tuple(jobs))
        try:
            sweep.check_same_settings()
        except UserError as error:
            exit_with(str(error), error.status)
        with open_dict(config):
            config.hydra.overrides.task = task
            config.hydra.overrides.hydra += pins(sweep.path, sorted(shared))
            config.hydra.sweep.dir = str(sweep.path)
            if "ray" in config.hydra.launcher:
                # Else the launcher asks for memory of its own, which a cluster that is there already refuses.
                config.hydra.launcher.ray.init.setdefault("object_store_memory", None)
        SweepStart.sweep = sweep


def _check_values(jobs: Sequence[Job], hydra: Sequence[str]) -> None:
    """Raise UserError for a value of another type than the one that it replaces, before any job is begun."""
    loader = GlobalHydra.instance().config_loader()
    checked: set[str] = set()
    for job in jobs:
        # Each value once, whatever it is combined with.
        if checked.issuperset(job.overrides):
            continue
        checked.update(job.overrides)
        # What cannot be composed at all is told when the job's turn comes.
        with suppress(HydraException):
            config = loader.load_configuration("train", [*job.overrides], RunMode.RUN, from_shell=False)
            check_values("train", config, job.overrides, hydra)


def conclude(sweep: Sweep, *, stopped: bool = False) -> int:
    """Print and write what became of the jobs; returns the exit status: 0 where all of them finished, 130 for Ctrl-C.

    stopped: by a person, who is told how to go on and is not kept waiting for figures.
    """
    if not sweep.begun:
        # None was begun, so that there is nothing to keep.
        sweep.discard()
        return 130 if stopped else 1
    missing = [run for run in sweep.runs if run.state != "finished"]
    if not stopped:
        _compare(sweep)
    shown = display_path(sweep.path)
    print(f"\n{len(sweep.runs) - len(missing)} of {len(sweep.runs)} jobs finished in {shown}", flush=True)
    if not missing:
        return 0
    for run in missing:
        if not run.config_file.exists():
            print(f"  not begun: {run.path.name}")
        elif stopped:
            # No table has told it.
            print(f"  {run.describe_state()}: {run.path.name}")
    command = shlex.join(["python", "-m", "fashion_cnn.train", f"resume={shown}"])
    print(f"Run what is missing, and that alone:\n  {command}", flush=True)
    return 130 if stopped else 1


def _compare(sweep: Sweep) -> None:
    from fashion_cnn.analysis.comparison import compare
    from fashion_cnn.analysis.comparison_report import write_comparison
    from fashion_cnn.cli.console import print_comparison

    begun = [run for run in sweep.runs if run.config_file.exists()]
    if any(run.state == "finished" for run in begun):
        comparison = compare(begun)
        print_comparison(comparison, *write_comparison(comparison, sweep.path / "comparison"))
        return
    for run in begun:
        print(f"{display_path(run.path)}: {run.describe_state()}")
