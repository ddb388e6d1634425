"""Evaluation of a network's vectors as a search: by class, by unseen class, by single product, beside baselines."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.data import ImageDataModule
from fashion_cnn.data.splits import derive_seed, stratified_order
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.corruptions import corrupt
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.metrics.intervals import Interval, MeanStd, mean_interval
from fashion_cnn.metrics.ranking import (
    DEPTH,
    NETWORK,
    LabelledSearchMetrics,
    RankingMetrics,
    evaluate_instances,
    evaluate_labelled,
)
from fashion_cnn.retrieval.vectors import as_query, search_vectors

Metric = Literal["cosine", "euclidean"]
# Similarities held at once: 64 MB as float32, however large the catalogue is.
_HELD = 2**24
# Pixels held as floats at once while the components are fitted.
_BLOCK = 5000
TOGETHER = "one on top of the other"
_COMPONENTS = 64
Figures = dict[str, tuple[str, ...]]
# In a folder a split of `Run.search_evaluation`: the stored measures of one run.
METRICS_FILE = "measures.json"
# By name, where a figure stands among the stored measures of a search.
METRICS: Figures = {
    "precision@1": ("precision", "1"),
    "precision@10": ("precision", "10"),
    "precision@100": ("precision", "100"),
    "recall@10": ("recall", "10"),
    "mAP@100": ("map_at_100",),
    "mAP@R": ("map_at_r",),
}
INSTANCE_METRICS: Figures = {"recall@1": ("recall", "1"), "recall@10": ("recall", "10")}


@torch.inference_mode()
def nearest(
    queries: Tensor,
    catalogue: Tensor,
    most: int,
    *,
    metric: Metric = "cosine",
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """The rows of `catalogue` `(N, D)` that lie nearest to each of `queries` `(Q, D)`, the nearest first: `(Q, most)`.

    metric: cosine takes vectors of length 1, as they are. most: N at most are given. progress: called after each block
    with the number of queries in it.
    """
    # |q - c|² = |q|² - 2 (q·c - |c|²/2), of which the first part is the same for all c.
    halves = catalogue.square().sum(dim=1) / 2 if metric == "euclidean" else None
    found = []
    for block in queries.split(max(1, _HELD // max(len(catalogue), 1))):
        closeness = block @ catalogue.T
        if halves is not None:
            closeness -= halves
        found.append(closeness.topk(min(most, len(catalogue)), dim=1).indices)
        progress(len(block))
    return torch.cat(found)


@dataclass(frozen=True)
class Baseline:
    """vectors: of images `(N, C, H, W)` uint8, `(N, D)` float32; of length 1 where the metric is the cosine. as_query:
    of vectors, what is searched by; None for themselves.
    """

    name: str
    vectors: Callable[[Tensor], Tensor]
    metric: Metric
    as_query: Callable[[Tensor], Tensor] | None = None

    def queries(self, images: Tensor) -> Tensor:
        """What the products like images `(N, C, H, W)` are searched by, `(N, D)`."""
        vectors = self.vectors(images)
        return self.as_query(vectors) if self.as_query else vectors


def pixel_directions(images: Tensor) -> Tensor:
    """The pixels as they are, as vectors of length 1."""
    return functional.normalize(pixels(images), dim=1)


def pixels(images: Tensor) -> Tensor:
    """The pixels, 0 to 1."""
    return images.flatten(1) / 255


@dataclass(frozen=True)
class PrincipalComponents:
    """The first `D` principal components of pixels, as directions: the cosine of centred images finds more of their
    class than the distance does. mean `(P,)`, components `(P, D)`, each of length 1.
    """

    mean: Tensor
    components: Tensor

    @classmethod
    def of(cls, images: Tensor, dimensions: int) -> "PrincipalComponents":
        """Those of images `(N, C, H, W)` uint8; as many as there are pixels, at most."""
        count = images[0].numel()
        total, products = torch.zeros(count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64)
        for block in images.split(_BLOCK):
            flat = pixels(block)
            total += flat.sum(dim=0, dtype=torch.float64)
            products += flat.T @ flat
        mean = total / len(images)
        covariance = products / len(images) - torch.outer(mean, mean)
        # In ascending order of their share.
        components = torch.linalg.eigh(covariance).eigenvectors[:, -dimensions:].flip(1)
        return cls(mean.float(), components.float().contiguous())

    def __call__(self, images: Tensor) -> Tensor:
        """Which way images lie from the mean, `(N, D)`, of length 1."""
        along = torch.cat([(pixels(block) - self.mean) @ self.components for block in images.split(_BLOCK)])
        return functional.normalize(along, dim=1)


@dataclass(frozen=True)
class AlteredCopies:
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

    searches: dict[str, dict[str, LabelledSearchMetrics]]
    instances: dict[str, dict[str, RankingMetrics]]
    accuracy: Interval | None


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


def load_search_images(data: ImageDataModule, split: str, most: int | None) -> Images:
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
        own, others = data.val_split.indices, data.train_positions(targets)
        others = others[~torch.isin(others, own)].sort().values
        catalogue, labels, queries, query_labels = images[others], targets[others], images[own], targets[own]
    elif data.has_test:
        catalogue, labels = data.labelled_images(train=True)
        queries, query_labels = data.labelled_images(train=False)
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
    altered: AlteredCopies | None,
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
    embedders = [
        Baseline(
            NETWORK,
            lambda batch: search_vectors(network.outputs(batch), class_weight),
            "cosine",
            lambda vectors: as_query(vectors, class_weight),
        )
    ]
    embedders += _baselines(network, images, seed) if baselines else []
    steps = len(embedders) * (sum(len(search.queries) for search in searches.values()) + len(copies) * len(originals))
    done = 0

    def step(more: int) -> None:
        nonlocal done
        done += more
        progress(done, steps)

    found: dict[str, dict[str, LabelledSearchMetrics]] = {name: {} for name in searches}
    instances: dict[str, dict[str, RankingMetrics]] = {name: {} for name in copies}
    for baseline in embedders:
        catalogue, queries = baseline.vectors(images.catalogue), baseline.queries(images.queries)
        for name, search in searches.items():
            ranked = nearest(
                queries[search.queries],
                catalogue[search.catalogue],
                DEPTH,
                metric=baseline.metric,
                progress=step,
            )
            found[name][baseline.name] = evaluate_labelled(
                ranked,
                images.query_labels[search.queries],
                images.catalogue_labels[search.catalogue],
                images.class_names,
            )
        for name, pictures in copies.items():
            ranked = nearest(baseline.queries(pictures), catalogue, DEPTH, metric=baseline.metric, progress=step)
            instances[name][baseline.name] = evaluate_instances(ranked, originals)
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


def _copies(images: Images, altered: AlteredCopies | None, seed: int) -> tuple[dict[str, Tensor], Tensor]:
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


def _baselines(network: TrainedNetwork, images: Images, seed: int) -> Sequence[Baseline]:
    # What the network was not shown, its baseline is not either.
    known = images.catalogue[torch.isin(images.catalogue_labels, images.seen)]
    components, untrained = PrincipalComponents.of(known, _COMPONENTS), network.untrained(seed)
    return [
        Baseline("pixels, cosine", pixel_directions, "cosine"),
        Baseline("pixels, Euclidean", pixels, "euclidean"),
        Baseline(f"{_COMPONENTS} principal components", components, "cosine"),
        Baseline("untrained network", untrained.embed, "cosine"),
    ]


def _accuracy(network: TrainedNetwork, images: Images) -> Interval | None:
    known = torch.isin(images.query_labels, images.seen)
    if not known.any():
        return None
    answers = images.seen[network.logits(images.queries[known]).argmax(dim=1)]
    return mean_interval(answers == images.query_labels[known])


def stored_metric(measures: dict[str, Any], path: Sequence[str]) -> dict[str, float] | None:
    """The mean with its interval that stands at `path` in stored measures; None where a list was too short for it."""
    found: dict[str, Any] | None = measures
    for key in path:
        found = found.get(key) if found else None
    return found


def summarise_runs(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation (null of a single run) and values over stored outcomes, by search, vectors and figure.

    Vectors that not all runs were measured by are left out.
    """
    searches: dict[str, Any] = {}
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome["searches"]):
        found = [outcome["searches"][name] for outcome in outcomes if name in outcome["searches"]]
        measured = [{whose: search["overall"] for whose, search in one.items()} for one in found]
        searches[name] = {
            "chance": MeanStd.of(next(iter(one.values()))["chance"] for one in found).mean,
            "by_vectors": _over_runs(measured, METRICS),
        }
    return {
        "runs": [outcome["run"] for outcome in outcomes],
        "unseen": [outcome["unseen"] for outcome in outcomes],
        "split": outcomes[0]["split"],
        "accuracy": _spread(outcome["accuracy"]["value"] for outcome in outcomes if outcome["accuracy"]),
        "searches": searches,
        "instances": {
            name: _over_runs([outcome["instances"][name] for outcome in outcomes], INSTANCE_METRICS)
            for name in outcomes[0]["instances"]
        },
    }


def _over_runs(measured: Sequence[dict[str, Any]], figures: Figures) -> dict[str, Any]:
    """By whose vectors, each figure over the runs; `measured`: of each run, measures by whose vectors."""
    return {
        whose: {
            name: _spread(found["value"] for of in measured if (found := stored_metric(of[whose], path)))
            for name, path in figures.items()
        }
        for whose in measured[0]
        if all(whose in of for of in measured)
    }


def _spread(values: Iterable[float]) -> dict[str, Any] | None:
    values = list(values)
    if not values:
        return None
    over_runs = MeanStd.of(values)
    return {"mean": over_runs.mean, "deviation": over_runs.std, "values": values}
