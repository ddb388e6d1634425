"""Suggest a learning rate by a short range test: `python -m fashion_cnn.find_learning_rate model=small`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _find_and_print(config: DictConfig) -> None:
    from fashion_cnn.errors import as_typed
    from fashion_cnn.terminal import print_text
    from fashion_cnn.training.learning_rate import find_learning_rate

    result = find_learning_rate(config)
    for key, rate in result["suggestion"].items():
        print_text(
            f"{key}={rate:g} (the config has {result['configured'][key]:g}): the loss falls fastest at "
            f"{result['steepest_at'][key]:g} and is lowest at {result['lowest_at'][key]:g}"
        )
    print_text(f"Curve: {result['written_to']}/learning_rate.png")
    print_text("No network was kept, and no setting changed. To train with the suggestion:")
    print(f"  {as_typed(result['command'])}")


def main() -> None:
    """Run the command line."""
    run_command("find_learning_rate", _find_and_print)


if __name__ == "__main__":
    main()
