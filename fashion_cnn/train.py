"""Train a network, test it once, and write a run directory: `python -m fashion_cnn.train model=small`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from fashion_cnn.cli.main import paused_garbage_collection, run_command, sweep_job_directory
from fashion_cnn.runs.overrides import CONFIG_DIR

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lightning.pytorch import Callback
    from omegaconf import DictConfig


def train(
    config: DictConfig, *, directory: Path | None = None, callbacks: Sequence[Callback] = (), quiet: bool = False
) -> dict[str, Any]:
    """Train a network with the settings of `config`.

    Args:
        config: the training's config, from `fashion_cnn.cli.main.compose("train", [...])`.
        directory: directory of the run; None for a new one below `runs_dir`. A finished run is left unchanged, a
            stopped one is continued.
        callbacks: Lightning callbacks in addition to those of the config.
        quiet: print neither the settings at the start nor the results at the end.

    Returns:
        The contents of the run's `results.json`, with the run's directory as `"run"`.

    Raises:
        UserError: invalid settings.
        Interrupted: the training was stopped.
    """
    with paused_garbage_collection():
        from fashion_cnn.cli.console import print_end, print_start
        from fashion_cnn.cli.errors import check_resumed
        from fashion_cnn.training.session import run_training

    job = sweep_job_directory()
    return run_training(
        config,
        directory=directory or job,
        callbacks=callbacks,
        in_sweep=job is not None,
        check_resumed=check_resumed,
        print_start=None if quiet else partial(print_start, config_dir=str(CONFIG_DIR)),
        print_end=None if quiet else print_end,
    )


def _train_for_sweeper(config: DictConfig) -> float | None:
    # A Hydra sweeper optimises the returned value, which must not depend on the test set.
    return train(config).get("val/accuracy")


def main() -> None:
    """Run the command line of `python -m fashion_cnn.train`."""
    run_command("train", _train_for_sweeper)


if __name__ == "__main__":
    main()
