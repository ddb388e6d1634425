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
    """Run trials of `conf/tune.yaml`'s config until its study has `tune.trials` of them; returns the study.

    swept: what was left open on the command line, such as `optimizer.lr=interval(0.001,0.1)`; then that alone is
    searched, unless a `sweep` was typed too. Raises UserError for
    settings that cannot work or are not those of the study that is there, and Interrupted where it was stopped.
    """
    require("sweeps", "optuna")
    from fashion_cnn.sweeps.search import search
    from fashion_cnn.train import train

    return search(config, swept, train)


def main() -> None:
    if any(override_key(argument) == "resume" for argument in sys.argv[1:]):
        exit_with(
            "resume is for trainings and sweeps. A search goes on when the command that began it is typed again; "
            "one that had a name of its own is told by tune.study=NAME.",
            2,
        )
    swept, others = split_swept(sys.argv[1:])
    # The values that a sweep lists are the search's choices here.
    sys.argv[1:] = [*others, "hydra.mode=RUN"]
    run_command("tune", partial(tune, swept=swept))


if __name__ == "__main__":
    main()
