"""Teach a trained network a concept: `python -m fashion_cnn.teach run=latest name="striped shirt" images=shirts/`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_images, check_invert, run_and_metadata
from fashion_cnn.errors import UserError, pluralize, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig
    from torch import Tensor

    from fashion_cnn.concepts import Background, Concept, Concepts
    from fashion_cnn.inference.network import EmbeddingNetwork
    from fashion_cnn.runs import Run

# Fewer products say too little about what a concept has to stand out from.
_MIN_PRODUCTS = 12
# Examples that are embedded between two reports of the progress.
_BATCH_SIZE = 32


def teach(config: DictConfig) -> None:
    """Teach, list or remove concepts.

    Args:
        config: `conf/teach.yaml` with the overrides.

    Raises:
        UserError: for an invalid option, or if no picture can be read.
    """
    _check(config)
    from fashion_cnn.concepts import Concepts
    from fashion_cnn.inference.network import TrainedNetwork
    from fashion_cnn.runs import check_links, create_folder, find_finished_run

    run, metadata = run_and_metadata(config, find_finished_run)
    if metadata and not run.path.is_dir():
        raise UserError(f"catalogue={config.catalogue} is not a folder on this machine, in which concepts are stored.")
    if config.name is not None or (config.remove is not None and run.concepts.exists()):
        check_links(run.path, run.concepts.name)
        create_folder(run.concepts, None)
    network: EmbeddingNetwork
    if metadata:
        from fashion_cnn.retrieval.vectors import load_mirrored_network

        network = load_mirrored_network(run, metadata)
    else:
        network = TrainedNetwork(run, flip_embeddings=True, needs_embeddings=True, invert=config.invert)
    concepts = Concepts(run, network.identity)
    if config.name is not None and not network.pretrained and str(config.name) in network.class_names:
        raise UserError(f"name={config.name} is a class of the network already: choose another name.")
    if config.remove is not None:
        concepts.remove(str(config.remove))
    elif config.name is not None:
        _teach(config, network, concepts)
    _print_concepts(concepts, network)


def _check(config: DictConfig) -> None:
    check_invert(config)
    check_images(config)
    if (config.name is None) != (config.images is None):
        missing = "images=PATH, its examples" if config.images is None else "name='some words', what they show"
        raise UserError(f"To teach a concept, give {missing}, too.", status=2)
    if config.name is not None and not str(config.name).strip():
        raise UserError("name= is empty: give a name for what the pictures show.", status=2)
    if config.name is not None and config.remove is not None:
        raise UserError("remove= and name= exclude each other: run one after the other.", status=2)
    if not 0 < config.false_alarms < 1:
        raise UserError(f"false_alarms={config.false_alarms} is not a share: give a number between 0 and 1.", status=2)


def _teach(config: DictConfig, network: EmbeddingNetwork, concepts: Concepts) -> None:
    from fashion_cnn.concepts import fit_background, learn
    from fashion_cnn.inference.network import instantiate_data

    examples = _embed_examples(config.images, network)
    background = concepts.background
    if background is None:
        if network.pretrained:
            background = _background_of_products(network.run)
        else:
            background = fit_background(network, instantiate_data(network.run, config.data.root))
        concepts.save_background(background)
    concept = learn(str(config.name), examples, background, false_alarms=config.false_alarms)
    replaced = concepts.save(concept)
    print(f"{'Replaced' if replaced else 'Taught'}: {concept.name}, from {pluralize(concept.examples, 'example')}.")
    print(f"  {_reliability(concept)}")
    if concept.false_alarms > config.false_alarms:
        print(
            f"  {_count(background, network)} cannot guarantee false_alarms={config.false_alarms}, but "
            f"{_percent(concept.false_alarms)}: more {'products' if network.pretrained else 'training images'} help."
        )


def _background_of_products(folder: Run) -> Background:
    """Fit the background to a random sample of a catalogue's products."""
    import torch

    from fashion_cnn.concepts import MAX_KNOWN_IMAGES, background_of
    from fashion_cnn.retrieval.catalogue import Catalogue
    from fashion_cnn.retrieval.snapshot import Snapshot

    snapshot = Snapshot(Catalogue(str(folder.path)))
    if len(snapshot) < _MIN_PRODUCTS:
        raise UserError(
            f"{snapshot.uri} holds {pluralize(len(snapshot), 'product')}: a concept has to stand out from at least "
            f"{_MIN_PRODUCTS}. Index more."
        )
    order = torch.randperm(len(snapshot), generator=torch.Generator().manual_seed(0))
    return background_of(torch.from_numpy(snapshot.vectors_of(order[:MAX_KNOWN_IMAGES].tolist())))


def _embed_examples(images: str | Sequence[str], network: EmbeddingNetwork) -> Tensor:
    """Return the embeddings `(K, D)` of the readable pictures."""
    import torch

    from fashion_cnn.pictures import UnreadablePictureError, find_pictures, read_pictures
    from fashion_cnn.pictures.decoding import silence_pillow
    from fashion_cnn.terminal import progress_bar

    pictures = []
    paths = find_pictures(images).paths
    with silence_pillow(), progress_bar("reading") as progress:
        for number, (path, picture) in enumerate(read_pictures(paths, network.preparation), start=1):
            progress(number, len(paths))
            if isinstance(picture, UnreadablePictureError):
                print(printable(f"{path}: {picture}"), file=sys.stderr)
            else:
                pictures.append(picture)
    if not pictures:
        raise UserError(f"images={images}: none of the pictures could be read.")
    embeddings = []
    with progress_bar("embedding") as progress:
        for start in range(0, len(pictures), _BATCH_SIZE):
            embeddings.append(network.embed(torch.stack(pictures[start : start + _BATCH_SIZE])))
            progress(min(start + _BATCH_SIZE, len(pictures)), len(pictures))
    return torch.cat(embeddings)


def _reliability(concept: Concept) -> str:
    if concept.recognised is None:
        return "Its reliability cannot be estimated from one example: give a few more."
    share = (
        f"Leave-one-out: {concept.recognised} of {pluralize(concept.examples, 'example')} recognised from the others"
    )
    weak = concept.recognised < concept.examples * 0.7
    return f"{share}{'; more examples, or more similar ones, would help' if weak else ''}."


def _count(background: Background, network: EmbeddingNetwork) -> str:
    """Return the number of images that the thresholds were computed from, in words."""
    count = len(background.others)
    return pluralize(count, "product") if network.pretrained else f"{pluralize(count, 'image')} of known classes"


def _print_concepts(concepts: Concepts, network: EmbeddingNetwork) -> None:
    from fashion_cnn.concepts import joint_false_alarm_rate
    from fashion_cnn.terminal import print_table

    background = concepts.background
    if not concepts.all:
        print(f"{network.run.path} has no concepts. Teach one with name='some words' images=PATH")
        return
    headings = ("concept", "examples", "recognised (leave-one-out)", "allowed false alarms")
    rows = [
        (
            concept.name,
            str(concept.examples),
            "" if concept.recognised is None else f"{concept.recognised} of {concept.examples}",
            _percent(concept.false_alarms),
        )
        for concept in concepts.all
    ]
    print_table(headings, rows, right=headings[1:], title=f"Concepts of {network.run.path}")
    if len(rows) > 1 and background is not None:
        rate = joint_false_alarm_rate(concepts.all, background)
        print(f"False alarms of all concepts together: {rate:.1%} of {_count(background, network)}.")


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def main() -> None:
    """Run the command."""
    run_command("teach", teach)


if __name__ == "__main__":
    main()
