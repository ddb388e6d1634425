"""Classify pictures: `python -m fashion_cnn.predict images=photos/ run=latest`."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_choice, check_images, check_invert, check_reject, run_and_metadata
from fashion_cnn.errors import Interrupted, OmissionsError, UserError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from omegaconf import DictConfig

    from fashion_cnn.inference.network import EmbeddingNetwork
    from fashion_cnn.inference.prediction import Prediction


def predict(config: DictConfig) -> None:
    """Print the predictions for `config.images` on standard output, and errors of single files on stderr.

    Raises:
        UserError: for invalid options, and at the end if no file could be read.
        OmissionsError: at the end, if some files could not be read.
    """
    _check(config)
    from fashion_cnn.runs import find_run

    run, metadata = run_and_metadata(config, find_run)

    from fashion_cnn.concepts import Concepts
    from fashion_cnn.inference.network import TrainedNetwork
    from fashion_cnn.inference.output import PRINTERS, with_progress
    from fashion_cnn.inference.predictor import Predictor, load_calibration
    from fashion_cnn.metrics.calibration import Calibration
    from fashion_cnn.pictures import find_pictures
    from fashion_cnn.pictures.decoding import silence_pillow

    with silence_pillow():
        files = find_pictures(config.images)
        if files.skipped:
            print(f"Skipped files that are not pictures: {files.skipped}", file=sys.stderr)
        network: EmbeddingNetwork
        calibration = Calibration()
        if metadata:
            from fashion_cnn.retrieval.vectors import load_mirrored_network

            network = load_mirrored_network(run, metadata)
        else:
            has_concepts = run.concepts.exists()
            calibration, warning = load_calibration(run, reject=config.reject, flip_average=config.flip_average)
            if warning:
                print(warning, file=sys.stderr)
            network = TrainedNetwork(
                run, flip_average=config.flip_average, flip_embeddings=has_concepts, invert=config.invert
            )
        concepts = Concepts(run, network.identity)
        needs_concept = metadata is not None and bool(concepts.all)
        predictor = Predictor(network, calibration, concepts.recognise, needs_concept=needs_concept)
        unreadable: list[Prediction] = []
        top_k = min(config.top_k, len(network.class_names))
        try:
            with closing(predictor.predict(files.paths, top_k=top_k)) as predictions:
                reported = _report_errors(predictions, unreadable)
                PRINTERS[config.format](with_progress(reported, len(files.paths), config.format), top_k)
        except KeyboardInterrupt:
            raise Interrupted("Stopped.") from None
    if unreadable:
        message = f"{len(unreadable)} of {len(files.paths)} files could not be read."
        raise UserError(message) if len(unreadable) == len(files.paths) else OmissionsError(message)


def _check(config: DictConfig) -> None:
    check_images(config, required=True)
    check_choice(config, "format", ("table", "json", "csv"))
    check_invert(config)
    check_reject(config.reject)
    if config.top_k < 1:
        raise UserError(f"top_k={config.top_k} is not possible: give 1 or more.", status=2)


def _report_errors(predictions: Iterable[Prediction], unreadable: list[Prediction]) -> Iterator[Prediction]:
    """Yield the predictions; print the errors among them on stderr and add them to `unreadable`."""
    for prediction in predictions:
        if prediction.error is not None:
            unreadable.append(prediction)
            print(printable(f"{prediction.path}: {prediction.error}"), file=sys.stderr)
        yield prediction


def main() -> None:
    """Run the command line."""
    run_command("predict", predict)


if __name__ == "__main__":
    main()
