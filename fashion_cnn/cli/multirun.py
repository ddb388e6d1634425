"""A sweep on the command line: lists and checks the jobs before the first one, compares the runs after the last."""

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
from fashion_cnn.errors import UserError, as_typed
from fashion_cnn.runs import check_links, create_folder, display_path
from fashion_cnn.runs.overrides import config_flags
from fashion_cnn.runs.trust import packages_to_trust, resume_command
from fashion_cnn.sweeps.jobs import Job, list_jobs, repeated_names
from fashion_cnn.sweeps.sweep import Sweep, add_earlier_values, pinned_overrides, resolve_latest_weights


class SweepStart(Callback):
    """Hydra callback that prepares a sweep in the process of its command.

    Attributes:
        sweep: the sweep that this process runs; None if it runs none.
    """

    sweep: ClassVar[Sweep | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """List and check the jobs, and complete the overrides that Hydra passes to them."""
        params = {str(key): value for key, value in (config.hydra.sweeper.get("params") or {}).items()}
        path = Path(str(config.hydra.sweep.dir)).expanduser().absolute()
        try:
            task = resolve_latest_weights(path, config.hydra.overrides.task, Path(str(config.runs_dir)).expanduser())
            task = add_earlier_values(path, task, params)
            jobs, shared = list_jobs(task, params)
            _check_values(jobs, config.hydra.overrides.hydra)
        except UserError as error:
            # Hydra turns an exception here into a warning.
            exit_with(str(error), error.status)
        except ValueError as error:
            exit_with(f"{error}: give a sweep a list of values, such as optimizer.lr=1e-3,1e-2.", 2)
        if repeated := repeated_names(jobs):
            exit_with(f"two jobs of this sweep would have the same name, {repeated[0]}: change their values.", 2)
        sweep = Sweep(path, tuple(jobs), tuple(config_flags(config.hydra, "train")))
        try:
            sweep.check_same_settings()
            check_links(sweep.path)
            create_folder(sweep.path, "runs_dir")
        except UserError as error:
            exit_with(str(error), error.status)
        with open_dict(config):
            config.hydra.overrides.task = task
            config.hydra.overrides.hydra += pinned_overrides(sweep.path, sorted(shared))
            config.hydra.sweep.dir = str(sweep.path)
            if "ray" in config.hydra.launcher:
                # By default the launcher requests memory for an object store, which a running cluster refuses.
                config.hydra.launcher.ray.init.setdefault("object_store_memory", None)
        SweepStart.sweep = sweep


def _check_values(jobs: Sequence[Job], hydra: Sequence[str]) -> None:
    """Raise UserError for a value of another type than the default, before any job starts."""
    loader = GlobalHydra.instance().config_loader()
    checked: set[str] = set()
    for job in jobs:
        # Check each value once, not in each combination.
        if checked.issuperset(job.overrides):
            continue
        checked.update(job.overrides)
        # A config that cannot be composed is reported by its job.
        with suppress(HydraException):
            config = loader.load_configuration("train", [*job.overrides], RunMode.RUN, from_shell=False)
            check_values("train", config, job.overrides, hydra)


def conclude(sweep: Sweep, *, stopped: bool = False) -> int:
    """Print the states of the jobs, and write and print the comparison of the finished runs.

    Args:
        sweep: the sweep that has ended.
        stopped: whether it ended by Ctrl-C: then only the states are printed.

    Returns:
        The exit status: 0 if all jobs finished, 130 for Ctrl-C, otherwise 1.
    """
    if not sweep.has_started:
        sweep.discard()
        return 130 if stopped else 1
    missing = [run for run in sweep.runs if run.state != "finished"]
    if not stopped:
        _compare(sweep)
    path = display_path(sweep.path)
    print(f"\n{len(sweep.runs) - len(missing)} of {len(sweep.runs)} jobs finished in {path}", flush=True)
    if not missing:
        return 0
    waiting = [run.path.name for run in missing if not run.config_file.exists()]
    if stopped:
        # Without Ctrl-C the comparison lists them.
        for run in missing:
            if run.config_file.exists():
                print(f"  {run.describe_state()}: {run.path.name}")
    if waiting:
        # A sweep may have hundreds of jobs.
        several = f"{len(waiting)} jobs, {waiting[0]} to {waiting[-1]}"
        print(f"  not started: {waiting[0] if len(waiting) == 1 else several}")
    started = (run for run in sweep.runs if run.config_file.exists() and run.state != "damaged")
    packages = dict.fromkeys(package for run in started for package in packages_to_trust(run.config()))
    command = resume_command(path, packages, sweep.flags)
    print(f"To run only the missing jobs:\n  {as_typed(command)}", flush=True)
    return 130 if stopped else 1


def _compare(sweep: Sweep) -> None:
    from fashion_cnn.analysis.comparison import compare
    from fashion_cnn.analysis.comparison_report import write_comparison
    from fashion_cnn.cli.console import print_comparison

    runs = [run for run in sweep.runs if run.config_file.exists()]
    if any(run.state == "finished" for run in runs):
        comparison = compare(runs)
        print_comparison(comparison, *write_comparison(comparison, sweep.path / "comparison"))
        return
    for run in runs:
        print(f"{display_path(run.path)}: {run.describe_state()}")
