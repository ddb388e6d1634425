"""Write a trained network as ONNX: `python -m fashion_cnn.export run=latest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_cnn import __version__
from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import require

if TYPE_CHECKING:
    from omegaconf import DictConfig


def export(config: DictConfig) -> dict[str, Any]:
    """Write the network of `config.run` as ONNX, and check it against PyTorch.

    The check takes the whole test set, without one the validation set, else training images.

    Returns:
        The record in `export.json`.

    Raises:
        UserError: if there is no such run, a package is missing, or the outputs differ from PyTorch's.
    """
    require("export", "onnx", "onnxruntime", "onnxscript")
    from fashion_cnn.inference.export import export_run
    from fashion_cnn.runs import check_links, find_finished_run

    run = find_finished_run(config.run, Path(config.runs_dir))
    if not config.out:
        check_links(run.path, run.export.name)
    return export_run(
        run,
        Path(config.out).expanduser() if config.out else run.export,
        data_root=config.data.root,
        int8=config.int8,
        int8_tolerance=config.int8_tolerance,
        version=__version__,
    )


def _export_and_print(config: DictConfig) -> None:
    from fashion_cnn.cli.console import print_export

    print_export(export(config))


def main() -> None:
    """Run the command line."""
    run_command("export", _export_and_print)


if __name__ == "__main__":
    main()
