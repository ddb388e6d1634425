"""Teach a trained network a concept: `python -m fashion_cnn.teach run=latest name="striped shirt" images=shirts/`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_images, check_invert
from fashion_cnn.errors import UserError, pluralize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig
    from torch import Tensor

    from fashion_cnn.concepts import Background, Concept, Concepts
    from fashion_cnn.inference.network import TrainedNetwork
    from fashion_cnn.runs import Run


def teach(config: DictConfig) -> None:
    """Teach, list or forget, as `config` says. Raises UserError for a mistake in the options or the pictures."""
    _check(config)
    from fashion_cnn.concepts import Concepts, learn
    from fashion_cnn.inference.network import TrainedNetwork
    from fashion_cnn.runs import find_finished_run

    run = find_finished_run(config.run, Path(config.runs_dir))
    network = TrainedNetwork(run, flip_embeddings=True, invert=config.invert)
    concepts = Concepts(run, network.identity)
    if config.name is not None and str(config.name) in network.class_names:
        raise UserError(f"name={config.name} is a class of the network already: teach it by a name of its own.")
    if config.remove is not None:
        concepts.remove(str(config.remove))
    elif config.name is None:
        _list(concepts, run)
        return
    else:
        examples = _examples(config.images, network)
        background = _background(concepts, network, config.data.root)
        concept = learn(str(config.name), examples, background, false_alarms=config.false_alarms)
        replaced = concepts.save(concept)
        print(f"{'Replaced' if replaced else 'Taught'}: {concept.name}, from {pluralize(concept.examples, 'example')}.")
        print(f"  {_reliability(concept)}")
        if concept.false_alarms > config.false_alarms:
            known = pluralize(len(background.others), "image")
            print(
                f"  {known} of what the network knows cannot promise false_alarms={config.false_alarms}: "
                f"{_percent(concept.false_alarms)} are allowed for; with more training images it could be fewer."
            )
    _list(concepts, run)


def _check(config: DictConfig) -> None:
    check_invert(config)
    check_images(config)
    if (config.name is None) != (config.images is None):
        missing = "images=PATH, its examples" if config.images is None else "name='some words', what they show"
        raise UserError(f"To teach something, say {missing}, too.", status=2)
    if config.name is not None and not str(config.name).strip():
        raise UserError("name= is empty: say what the pictures show.", status=2)
    if config.name is not None and config.remove is not None:
        raise UserError("remove= and name= do not go together: do one after the other.", status=2)
    if not 0 < config.false_alarms < 1:
        raise UserError(f"false_alarms={config.false_alarms} is no share: give one above 0, below 1.", status=2)


def _examples(images: str | Sequence[str], network: TrainedNetwork) -> Tensor:
    """The embeddings `(K, D)` of the pictures."""
    import torch

    from fashion_cnn.pictures import UnreadablePictureError, find_pictures, read_pictures
    from fashion_cnn.pictures.decoding import silence_pillow

    pictures = []
    with silence_pillow():
        for path, picture in read_pictures(find_pictures(images).paths, network.preparation):
            if isinstance(picture, UnreadablePictureError):
                print(f"{path}: {picture}", file=sys.stderr)
            else:
                pictures.append(picture)
    if not pictures:
        raise UserError("None of the pictures could be read.")
    return network.embed(torch.stack(pictures))


def _background(concepts: Concepts, network: TrainedNetwork, data_root: str | None) -> Background:
    from fashion_cnn.concepts import fit_background
    from fashion_cnn.inference.network import instantiate_data

    background = concepts.background()
    if background is None:
        background = fit_background(network, instantiate_data(network.run, data_root))
        concepts.save_background(background)
    return background


def _list(concepts: Concepts, run: Run) -> None:
    from rich.table import Table
    from rich.text import Text

    from fashion_cnn.concepts import joint_false_alarm_rate
    from fashion_cnn.terminal import wide_console

    taught, background = concepts.all(), concepts.background()
    if not taught:
        print(f"{run.path} was taught nothing. To teach it: name='some words' images=PATH")
        return
    table = Table(title=f"Taught to {run.path}", title_justify="left")
    for heading in ("concept", "examples", "recognised without itself", "false alarms allowed"):
        table.add_column(heading, justify="left" if heading == "concept" else "right", overflow="fold")
    for one in taught:
        recognised = "" if one.recognised is None else f"{one.recognised} of {one.examples}"
        table.add_row(Text(one.name), str(one.examples), recognised, _percent(one.false_alarms))
    wide_console().print(table)
    if len(taught) > 1 and background is not None:
        known = pluralize(len(background.others), "image")
        share = joint_false_alarm_rate(taught, background)
        print(f"The false alarms of all together: {share:.1%} of {known} of what the network knows.")


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _reliability(concept: Concept) -> str:
    if concept.recognised is None:
        return "How reliable that is cannot be told from one example: give a few more."
    said = f"Each example left out in turn, {concept.recognised} of {concept.examples} were recognised by the others"
    weak = concept.recognised < concept.examples * 0.7
    return f"{said}{': more examples, or more alike, would help' if weak else ''}."


def main() -> None:
    run_command("teach", teach)


if __name__ == "__main__":
    main()
