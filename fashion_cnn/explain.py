"""Explain the predictions for pictures: `python -m fashion_cnn.explain run=latest images=shirt.jpg`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_images, check_invert, check_reject, require
from fashion_cnn.errors import OmissionsError, UserError, printable

if TYPE_CHECKING:
    from omegaconf import DictConfig


def explain(config: DictConfig) -> None:
    """Write a page for each of `config.images`, and print its path.

    Raises:
        UserError: for invalid options, and at the end if no file could be read.
        OmissionsError: at the end, if some files could not be read.
    """
    require("explain", "captum")
    from fashion_cnn.inference.explain import Explainer
    from fashion_cnn.inference.output import encodable
    from fashion_cnn.pictures import UnreadablePictureError, find_pictures
    from fashion_cnn.pictures.decoding import silence_pillow
    from fashion_cnn.runs import check_links, display_path, find_run
    from fashion_cnn.terminal import progress_bar

    check_images(config, required=True)
    check_invert(config)
    check_reject(config.reject)
    if config.neighbours < 1:
        raise UserError(f"neighbours={config.neighbours} is not possible: give 1 or more.", status=2)
    if config.training_images is not None and config.training_images < 1:
        raise UserError(f"training_images={config.training_images} is not possible: give 1 or more, or null.", status=2)
    run = find_run(config.run, Path(config.runs_dir))
    files = find_pictures(config.images)
    folder = Path(config.out).expanduser() if config.out else run.path / "explained"
    if not config.out:
        check_links(run.path, folder.name)
    unreadable = 0
    with silence_pillow():
        explainer = Explainer(
            run,
            data_root=config.data.root,
            neighbours=config.neighbours,
            training_images=config.training_images,
            about=None if config.about is None else str(config.about),
            reject=config.reject,
            invert=config.invert,
        )
        if explainer.warning:
            print(explainer.warning, file=sys.stderr)
        with progress_bar("pictures") as progress:
            for number, path in enumerate(files.paths, start=1):
                try:
                    print(encodable(printable(str(display_path(explainer.explain(path, folder))))), flush=True)
                except UnreadablePictureError as error:
                    unreadable += 1
                    print(printable(f"{path}: {error}"), file=sys.stderr)
                progress(number, len(files.paths))
    if unreadable:
        message = f"{unreadable} of {len(files.paths)} files could not be read."
        raise UserError(message) if unreadable == len(files.paths) else OmissionsError(message)


def main() -> None:
    """Run the command line."""
    run_command("explain", explain)


if __name__ == "__main__":
    main()
