"""Say what is on pictures: `python -m fashion_cnn.predict images=photos/ run=latest`."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_choice, check_images, check_invert, check_reject
from fashion_cnn.errors import Interrupted, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from omegaconf import DictConfig

    from fashion_cnn.inference.predictor import Answer


def predict(config: DictConfig) -> None:
    """Print what is on `config.images` on standard output, and on stderr what could not be read.

    Raises UserError for a mistake in the options, and at the end where a file could not be read.
    """
    from fashion_cnn import runs

    _check(config)
    run = runs.find_run(config.run, Path(str(config.runs_dir)).expanduser())

    from fashion_cnn.concepts import Concepts
    from fashion_cnn.inference.network import TrainedNetwork
    from fashion_cnn.inference.output import PRINTERS, with_progress
    from fashion_cnn.inference.predictor import Predictor, calibration_of
    from fashion_cnn.pictures import find_pictures
    from fashion_cnn.pictures.decoding import silence_pillow

    with silence_pillow():
        files = find_pictures(config.images)
        if files.skipped:
            _say(f"Skipped files that are not pictures: {files.skipped}")
        calibration, remark = calibration_of(run, reject=config.reject, flip_average=config.flip_average)
        if remark:
            _say(remark)
        taught = run.concepts.exists()
        network = TrainedNetwork(run, flip_average=config.flip_average, flip_embeddings=taught, invert=config.invert)
        predictor = Predictor(network, calibration, Concepts(run, network.identity).recognise)
        unreadable: list[Answer] = []
        top_k = min(config.top_k, len(network.class_names))
        try:
            with closing(predictor.answers(files.paths, top_k=top_k)) as answers:
                told = _telling(answers, unreadable)
                PRINTERS[config.format](with_progress(told, len(files.paths), config.format), top_k)
        except KeyboardInterrupt:
            raise Interrupted("Stopped.") from None
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(files.paths)} files could not be read.")


def _check(config: DictConfig) -> None:
    check_images(config, required=True)
    check_choice(config, "format", ("table", "json", "csv"))
    check_invert(config)
    check_reject(config.reject)
    if config.top_k < 1:
        raise UserError(f"top_k={config.top_k} is not possible: give 1 or more.", status=2)


def _telling(answers: Iterable[Answer], unreadable: list[Answer]) -> Iterator[Answer]:
    """The same answers; those of files that could not be read are told on stderr and added to `unreadable`."""
    for answer in answers:
        if answer.error is not None:
            unreadable.append(answer)
            _say(f"{answer.path}: {answer.error}")
        yield answer


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def main() -> None:
    run_command("predict", predict)


if __name__ == "__main__":
    main()
