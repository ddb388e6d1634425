"""What happens before the first job of a sweep: jobs are listed and named, and a mistake ends it here."""

from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from fashion_cnn.errors import UserError
from fashion_cnn.mistakes import exit_with
from fashion_cnn.sweeps.directory import Sweep, pins
from fashion_cnn.sweeps.jobs import jobs_of, repeated_names


class SweepStart(Callback):
    """Hydra calls it in the process that the sweep was started from; `sweep` is then the one that runs there."""

    sweep: ClassVar[Sweep | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}))
        assert isinstance(params, dict)
        try:
            jobs, shared = jobs_of(config.hydra.overrides.task, {str(key): value for key, value in params.items()})
        except ValueError as error:
            exit_with(f"{error}: a sweep tries each of a list of values, such as optimizer.lr=1e-3,1e-2.", 2)
        if repeated := repeated_names(jobs):
            exit_with(f"Two jobs of this sweep would both be called {repeated[0]}: give values that differ in more.", 2)
        sweep = Sweep(Path(str(config.hydra.sweep.dir)).absolute(), tuple(jobs))
        try:
            sweep.check_same_settings()
        except UserError as error:
            # Hydra would make a warning of it.
            exit_with(str(error), error.status)
        with open_dict(config):
            config.hydra.overrides.hydra += pins(sweep.path, sorted(shared))
            config.hydra.sweep.dir = str(sweep.path)
            if "ray" in config.hydra.launcher:
                # Else the launcher asks for memory of its own, which a cluster that is there already refuses.
                config.hydra.launcher.ray.init.setdefault("object_store_memory", None)
        SweepStart.sweep = sweep
