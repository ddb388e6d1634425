"""Write a trained network as ONNX or for a model hub: `python -m fashion_cnn.export run=latest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_cnn import __version__
from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_choice, require
from fashion_cnn.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def export(config: DictConfig) -> dict[str, Any]:
    """Write the network of `config.run` as ONNX, or as a folder for a model hub, and check it against PyTorch.

    The check of ONNX takes the whole test set, without one the validation set, else training images; that of the folder
    takes random images.

    Returns:
        For ONNX, the record in `export.json`; for a hub, the written files and their sizes.

    Raises:
        UserError: if there is no such run, a package is missing, or the outputs differ from PyTorch's.
    """
    check_choice(config, "format", ("onnx", "hub"))
    check_choice(config, "embedding", ("run", "pretrained"))
    if config.embedding == "pretrained":
        return _export_pretrained(config)
    is_hub = config.format == "hub"
    if is_hub:
        require("hub", "safetensors")
    else:
        require("export", "onnx", "onnxruntime", "onnxscript")
    from fashion_cnn.runs import check_links, find_finished_run

    run = find_finished_run(config.run, Path(config.runs_dir))
    if not config.out:
        check_links(run.path, run.export.name)
    if is_hub:
        from fashion_cnn.inference.hub import export_to_hub

        folder = Path(config.out).expanduser() if config.out else run.export / "hub"
        return export_to_hub(run, folder, version=__version__, license_name=config.license)

    from fashion_cnn.inference.export import export_run

    return export_run(
        run,
        Path(config.out).expanduser() if config.out else run.export,
        data_root=config.data.root,
        int8=config.int8,
        int8_tolerance=config.int8_tolerance,
        version=__version__,
    )


def _export_pretrained(config: DictConfig) -> dict[str, Any]:
    """Write the network of a catalogue of `embedding=pretrained` as ONNX into the catalogue's folder."""
    if config.catalogue is None:
        raise UserError("embedding=pretrained belongs to a catalogue: add catalogue=DIR, such as catalogue=shop/.")
    if config.format != "onnx" or config.run != "latest":
        option = "format=hub" if config.format != "onnx" else f"run={config.run}"
        raise UserError(f"embedding=pretrained belongs to a catalogue and is written as ONNX: omit {option}.")
    require("search", "lancedb")
    require("export", "onnx", "onnxruntime", "onnxscript")
    from fashion_cnn.inference.export import export_pretrained
    from fashion_cnn.inference.onnx_network import ONNX_FILE
    from fashion_cnn.inference.pretrained import PretrainedNetwork
    from fashion_cnn.pictures.photographs import check_settings
    from fashion_cnn.retrieval.catalogue import Catalogue, catalogue_uri
    from fashion_cnn.runs import Run, check_links

    catalogue = Catalogue(catalogue_uri(config.catalogue))
    metadata = catalogue.metadata()
    if metadata.pretrained is None:
        raise UserError(f"{catalogue.uri} was indexed with {metadata.source}: export the network of that run.")
    if "://" in catalogue.uri and not config.out:
        raise UserError(f"{catalogue.uri} is no folder: add out=DIR, from where the file is copied to the server.")
    check_settings(metadata.pretrained, catalogue.uri)
    run = Run(Path(catalogue.uri))
    if not config.out:
        check_links(run.path, ONNX_FILE)
    folder = Path(config.out).expanduser() if config.out else run.path
    network = PretrainedNetwork(run, metadata.pretrained, flip_average=metadata.flip_average)
    return export_pretrained(network, folder / ONNX_FILE)


def _print_pretrained(record: dict[str, Any]) -> None:
    print(
        f"{record['written_to']}: {record['bytes'] / 1e6:.1f} MB, takes photographs (N, H, W, 3) uint8 of any size. "
        f"Cosine with PyTorch's features at least {1 - record['cosine_difference']:.6f}."
    )


def _export_and_print(config: DictConfig) -> None:
    from fashion_cnn.cli.console import print_export, print_hub_export

    outcome = export(config)
    if config.embedding == "pretrained":
        _print_pretrained(outcome)
    else:
        (print_hub_export if config.format == "hub" else print_export)(outcome)


def main() -> None:
    """Run the command line."""
    run_command("export", _export_and_print)


if __name__ == "__main__":
    main()
