"""A network's vectors as a search, measured on its own data set: by class, by unseen class, and by single product."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fashion_cnn.data import ImageDataModule
from fashion_cnn.data.seeding import derive_seed
from fashion_cnn.data.split import stratified_order
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.corruptions import corrupt
from fashion_cnn.prediction import TrainedNetwork
from fashion_cnn.retrieval.measures import (
    DEPTH,
    LabelledSearch,
    Mean,
    RankingMeasures,
    measure_instances,
    measure_labelled,
)
from fashion_cnn.retrieval.ranking import nearest
from fashion_cnn.retrieval.vectors import as_query, search_vectors
from fashion_cnn.retrieval.yardsticks import PrincipalComponents, Yardstick, pixel_directions, pixels

NETWORK, TOGETHER = "network", "one on top of the other"
_COMPONENTS = 64


@dataclass(frozen=True)
class Altered:
    """Copies of catalogue images that are to find their originals.

    count: how many. corruptions: of `evaluation/corruptions.py`, all of one severity; each alone, and then, where there
    are several, one on top of the other.
    """

    count: int
    corruptions: tuple[str, ...]
    severity: int


@dataclass(frozen=True)
class SearchEvaluation:
    """searches: by what was searched and by whose vectors, `NETWORK` first. instances: likewise, by how the copies were
    altered.

    accuracy: of the network on the queries of its own classes, looked at in the same way; None where it has none.
    """

    searches: dict[str, dict[str, LabelledSearch]]
    instances: dict[str, dict[str, RankingMeasures]]
    accuracy: Mean | None


@dataclass(frozen=True)
class _Search:
    """Which queries look among which products: numbers of images."""

    queries: Tensor
    catalogue: Tensor


@dataclass(frozen=True)
class Images:
    """All images for training as the catalogue, and those of the split as queries, with the data set's own labels.

    catalogue `(N, C, H, W)` and queries `(Q, C, H, W)` uint8, their labels `(N,)` and `(Q,)`. class_names: of all
    labels. unseen: labels of which the network was shown no image.
    """

    catalogue: Tensor
    catalogue_labels: Tensor
    queries: Tensor
    query_labels: Tensor
    class_names: tuple[str, ...]
    unseen: tuple[int, ...]

    @property
    def seen(self) -> Tensor:
        """The labels that the network knows, in the order of its logits."""
        return torch.tensor([label for label in range(len(self.class_names)) if label not in self.unseen])


def images_of(data: ImageDataModule, split: str, most: int | None) -> Images:
    """The images to search among and to search by.

    split: test searches among all images for training, validation included; val among these without its own.
    most: so many queries, the classes in their true proportions; None takes all.
    Raises UserError where the split holds nothing.
    """
    data.prepare_data()
    if split == "val":
        if not data.val_size:
            raise UserError("The run kept no validation images (data.val_size=0): say split=test.")
        images, targets = data.load(train=True)
        data.setup("fit")
        own, others = data.val_split.indices, data.order(targets)
        others = others[~torch.isin(others, own)].sort().values
        catalogue, labels, queries, query_labels = images[others], targets[others], images[own], targets[own]
    elif data.has_test:
        catalogue, labels = data.labelled(train=True)
        queries, query_labels = data.labelled(train=False)
    else:
        raise UserError("The run's data set has no test images: say split=val.")
    if most is not None:
        chosen = stratified_order(query_labels, 0)[:most]
        queries, query_labels = queries[chosen], query_labels[chosen]
    return Images(catalogue, labels, queries, query_labels, tuple(data.all_class_names), tuple(sorted(data.left_out)))


def evaluate_search(
    network: TrainedNetwork,
    images: Images,
    *,
    class_weight: float = 0.0,
    altered: Altered | None,
    baselines: bool,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SearchEvaluation:
    """Measure exact search by the network's vectors and, where `baselines`, by others that have learned nothing.

    class_weight: see `search_vectors`. altered: None leaves out the single products. seed: of the untrained network and
    of the altered copies.
    progress: called with the searches done and of all searches.
    """
    searches = _searches(images)
    copies, originals = _copies(images, altered, seed)
    yardsticks = [
        Yardstick(
            NETWORK,
            lambda batch: search_vectors(network.look(batch), class_weight),
            "cosine",
            lambda vectors: as_query(vectors, class_weight),
        )
    ]
    yardsticks += _baselines(network, images, seed) if baselines else []
    steps = len(yardsticks) * (sum(len(search.queries) for search in searches.values()) + len(copies) * len(originals))
    done = 0

    def step(more: int) -> None:
        nonlocal done
        done += more
        progress(done, steps)

    found: dict[str, dict[str, LabelledSearch]] = {name: {} for name in searches}
    instances: dict[str, dict[str, RankingMeasures]] = {name: {} for name in copies}
    for yardstick in yardsticks:
        catalogue, queries = yardstick.vectors(images.catalogue), yardstick.queries(images.queries)
        for name, search in searches.items():
            ranked = nearest(
                queries[search.queries],
                catalogue[search.catalogue],
                DEPTH,
                metric=yardstick.metric,
                progress=step,
            )
            found[name][yardstick.name] = measure_labelled(
                ranked,
                images.query_labels[search.queries],
                images.catalogue_labels[search.catalogue],
                images.class_names,
            )
        for name, pictures in copies.items():
            ranked = nearest(yardstick.queries(pictures), catalogue, DEPTH, metric=yardstick.metric, progress=step)
            instances[name][yardstick.name] = measure_instances(ranked, originals)
    return SearchEvaluation(found, instances, _accuracy(network, images))


def _searches(images: Images) -> dict[str, _Search]:
    everything = torch.arange(len(images.catalogue))
    if not images.unseen:
        return {"all classes": _Search(torch.arange(len(images.queries)), everything)}
    unseen = torch.tensor(images.unseen)
    new_queries, new_products = (
        torch.isin(labels, unseen) for labels in (images.query_labels, images.catalogue_labels)
    )
    searches = {"classes it knows": _Search(_rows(~new_queries), _rows(~new_products))}
    if new_queries.any():
        searches["unseen classes, among themselves"] = _Search(_rows(new_queries), _rows(new_products))
        searches["unseen classes, among all"] = _Search(_rows(new_queries), everything)
    return searches


def _rows(chosen: Tensor) -> Tensor:
    return chosen.nonzero()[:, 0]


def _copies(images: Images, altered: Altered | None, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Copies by how they were altered, and the catalogue rows of their originals."""
    if altered is None:
        return {}, torch.arange(0)
    generator = torch.Generator().manual_seed(derive_seed("instances", seed))
    originals = torch.randperm(len(images.catalogue), generator=generator)[: altered.count]
    as_they_are = together = images.catalogue[originals]
    copies = {}
    for name in altered.corruptions:
        copies[name] = corrupt(as_they_are, name, altered.severity, seed=seed)
        together = corrupt(together, name, altered.severity, seed=seed)
    if len(copies) > 1:
        copies[TOGETHER] = together
    return copies, originals


def _baselines(network: TrainedNetwork, images: Images, seed: int) -> Sequence[Yardstick]:
    # What the network was not shown, its yardstick is not either.
    known = images.catalogue[torch.isin(images.catalogue_labels, images.seen)]
    components, untrained = PrincipalComponents.of(known, _COMPONENTS), network.untrained(seed)
    return [
        Yardstick("pixels, cosine", pixel_directions, "cosine"),
        Yardstick("pixels, Euclidean", pixels, "euclidean"),
        Yardstick(f"{_COMPONENTS} principal components", components, "cosine"),
        Yardstick("untrained network", lambda batch: untrained.look(batch).embeddings, "cosine"),
    ]


def _accuracy(network: TrainedNetwork, images: Images) -> Mean | None:
    known = torch.isin(images.query_labels, images.seen)
    if not known.any():
        return None
    answers = images.seen[network.look(images.queries[known]).logits.argmax(dim=1)]
    return Mean.of(answers == images.query_labels[known])
