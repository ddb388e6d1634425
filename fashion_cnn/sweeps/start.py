"""What happens before the first job of a sweep: jobs are listed and named, and a mistake ends it here."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from fashion_cnn.errors import UserError
from fashion_cnn.mistakes import check_values, exit_with
from fashion_cnn.sweeps.directory import Sweep, pins, task_with_jobs_of_before, with_weights_named
from fashion_cnn.sweeps.jobs import Job, jobs_of, repeated_names


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
