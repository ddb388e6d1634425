"""Search for the best settings on validation: `python -m fashion_cnn.tune sweep=optimizer model=tiny`."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from fashion_cnn.command_line import run_command
from fashion_cnn.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig


def tune(config: DictConfig, swept: Sequence[str] = ()) -> Any:
    """Run trials of `conf/tune.yaml`'s config until its study has `tune.trials` of them; returns the study.

    swept: what was left open on the command line, such as `optimizer.lr=interval(0.001,0.1)`. Raises UserError for
    settings that cannot work or are not those of the study that is there, and Interrupted where it was stopped.
    """
    require("sweeps", "optuna")
    from fashion_cnn.tuning.search import search

    return search(config, swept)


def main() -> None:
    from fashion_cnn.tuning.swept import take_swept

    swept, others = take_swept(sys.argv[1:])
    # The values that a sweep lists are the search's choices here.
    sys.argv[1:] = [*others, "hydra.mode=RUN"]
    run_command("tune", partial(tune, swept=swept))


if __name__ == "__main__":
    main()
