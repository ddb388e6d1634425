"""Train a network, test it once, and leave a run directory: `python -m fashion_cnn.train model=small`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fashion_cnn.cli.main import run_command, sweep_job_directory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lightning.pytorch import Callback
    from omegaconf import DictConfig


def train(config: DictConfig, *, directory: Path | None = None, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train as `config` says, which `fashion_cnn.cli.main.compose("train", [...])` gives.

    directory: the run's own, in place of a new one below `runs_dir`: one that is finished is left as it is, one that
    was stopped goes on. callbacks: Lightning's, beside those of the config.
    Returns the results that the run's results.json holds, with the run's directory as `"run"`.
    Raises UserError for settings that cannot work, and Interrupted where it was stopped.
    """
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
        print_start=print_start,
        print_end=print_end,
    )


def _train_and_give_objective(config: DictConfig) -> float | None:
    # What a Hydra sweeper optimises: never a figure of the test set.
    return train(config).get("val/accuracy")


def main() -> None:
    run_command("train", _train_and_give_objective)


if __name__ == "__main__":
    main()
