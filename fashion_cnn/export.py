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
    """Write the network of `config.run`, check it against PyTorch on the whole test set, and return what came of it.

    Without a test set it is checked on the validation images, or else on training images.

    Raises UserError where there is no such run, a package is missing, or the file does not answer as PyTorch does.
    """
    require("export", "onnx", "onnxruntime", "onnxscript")
    from fashion_cnn.inference.export import export_run
    from fashion_cnn.runs import find_finished_run

    run = find_finished_run(config.run, Path(config.runs_dir))
    return export_run(
        run,
        Path(config.out).expanduser() if config.out else run.export,
        data_root=config.data.root,
        int8=config.int8,
        int8_tolerance=config.int8_tolerance,
        version=__version__,
    )


def _export_and_tell(config: DictConfig) -> None:
    from fashion_cnn.cli.console import print_export

    print_export(export(config))


def main() -> None:
    run_command("export", _export_and_tell)


if __name__ == "__main__":
    main()
