"""Search for the best settings on validation: `python -m fashion_cnn.tune sweep=optimizer model=tiny`."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from fashion_cnn.cli.errors import exit_with
from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import require
from fashion_cnn.runs.overrides import override_key, split_swept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig


def tune(config: DictConfig, swept: Sequence[str] = ()) -> Any:
    """Run trials until the study has `tune.trials` of them.

    Args:
        config: a config of `conf/tune.yaml`.
        swept: overrides that leave a value open, such as `optimizer.lr=interval(0.001,0.1)`. They replace the default
            search space, and extend one that is chosen with `sweep=`.

    Returns:
        The Optuna study.

    Raises:
        UserError: invalid settings, or settings that differ from those of the existing study.
        Interrupted: the search was stopped.
    """
    require("sweeps", "optuna")
    from fashion_cnn.sweeps.search import search
    from fashion_cnn.train import train

    return search(config, swept, train)


def main() -> None:
    """Run the command line of `python -m fashion_cnn.tune`."""
    if any(override_key(argument) == "resume" for argument in sys.argv[1:]):
        exit_with(
            "resume continues trainings and sweeps. To continue a search, run the command of the search again, with "
            "tune.study=NAME if it had one.",
            2,
        )
    swept, others = split_swept(sys.argv[1:])
    # A file of conf/sweep may set the mode MULTIRUN; here its values are the search space.
    # Next to the other overrides: argparse does not accept them on both sides of an option such as --cfg job.
    place = next((number for number, argument in enumerate(others) if "=" in argument), len(others))
    sys.argv[1:] = [*others[:place], "hydra.mode=RUN", *others[place:]]
    run_command("tune", partial(tune, swept=swept))


if __name__ == "__main__":
    main()
