"""Evaluation of search vectors: retrieval of the class, of unseen classes and of single products, beside baselines.

Queries are images of the test or validation split, the catalogue holds the training images. `evaluate_search` is the
entry point; `summarise_runs` averages stored results over runs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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
from fashion_cnn.retrieval.vectors import search_vectors, to_query

# Queries and catalogue


@dataclass(frozen=True)
class SearchImages:
    """Images of a search evaluation, with the labels of the data set.

    Attributes:
        catalogue: images `(N, C, H, W)` uint8 to search in.
        catalogue_labels: their labels `(N,)`.
        queries: images `(Q, C, H, W)` uint8 to search by.
        query_labels: their labels `(Q,)`.
        class_names: names of all labels.
        unseen: labels of classes that the network was not trained on.
    """

    catalogue: Tensor
    catalogue_labels: Tensor
    queries: Tensor
    query_labels: Tensor
    class_names: tuple[str, ...]
    unseen: tuple[int, ...]

    @property
    def known_labels(self) -> Tensor:
        """Labels that the network was trained on, in the order of its logits."""
        return torch.tensor([label for label in range(len(self.class_names)) if label not in self.unseen])


def load_search_images(data: ImageDataModule, split: str, max_queries: int | None) -> SearchImages:
    """Load the catalogue and the queries of a split.

    Args:
        data: the data set of a run.
        split: test searches in all training images, including those for validation; val searches in the others.
        max_queries: number of queries, drawn with the proportions of the classes; None for all.

    Raises:
        UserError: if the split is empty.
    """
    data.prepare_data()
    if split == "val":
        if not data.val_size:
            raise UserError("The run has no validation images (data.val_size=0): use split=test.")
        images, targets = data.read(train=True)
        data.setup("fit")
        val_rows, rows = data.val_split.indices, data.train_positions(targets)
        rows = rows[~torch.isin(rows, val_rows)].sort().values
        catalogue, labels, queries, query_labels = images[rows], targets[rows], images[val_rows], targets[val_rows]
    elif data.has_test:
        catalogue, labels = data.labelled_images(train=True)
        queries, query_labels = data.labelled_images(train=False)
    else:
        raise UserError("The run's data set has no test images: use split=val.")
    if max_queries is not None:
        chosen = stratified_order(query_labels, 0)[:max_queries]
        queries, query_labels = queries[chosen], query_labels[chosen]
    unseen = tuple(sorted(data.left_out))
    return SearchImages(catalogue, labels, queries, query_labels, tuple(data.all_class_names), unseen)


class _Task(NamedTuple):
    """Rows of the queries and of the catalogue images of one search task."""

    queries: Tensor
    catalogue: Tensor


def _tasks(images: SearchImages) -> dict[str, _Task]:
    """Return the search tasks by name: all classes, or known and unseen classes apart."""
    everything = torch.arange(len(images.catalogue))
    if not images.unseen:
        return {"all classes": _Task(torch.arange(len(images.queries)), everything)}
    unseen = torch.tensor(images.unseen)
    new_queries, new_products = (
        torch.isin(labels, unseen) for labels in (images.query_labels, images.catalogue_labels)
    )
    tasks = {"classes it knows": _Task(_rows(~new_queries), _rows(~new_products))}
    if new_queries.any():
        tasks["unseen classes, among themselves"] = _Task(_rows(new_queries), _rows(new_products))
        tasks["unseen classes, among all"] = _Task(_rows(new_queries), everything)
    return tasks


def _rows(mask: Tensor) -> Tensor:
    return mask.nonzero()[:, 0]


@dataclass(frozen=True)
class AlteredCopies:
    """Altered copies of catalogue images, used as queries for their originals.

    Attributes:
        count: number of originals.
        corruptions: names from `evaluation/corruptions.py`; each is applied alone, and then all of them in turn.
        severity: severity of the corruptions, 1 to 5.
    """

    count: int
    corruptions: tuple[str, ...]
    severity: int


# Name of the copies to which all corruptions are applied.
COMBINED = "one on top of the other"


def _altered_copies(images: SearchImages, altered: AlteredCopies | None, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the copies by the name of their corruption, and the catalogue rows of their originals."""
    if altered is None:
        return {}, torch.arange(0)
    generator = torch.Generator().manual_seed(derive_seed("instances", seed))
    rows = torch.randperm(len(images.catalogue), generator=generator)[: altered.count]
    originals = combined = images.catalogue[rows]
    copies = {}
    for name in altered.corruptions:
        copies[name] = corrupt(originals, name, altered.severity, seed=seed)
        combined = corrupt(combined, name, altered.severity, seed=seed)
    if len(copies) > 1:
        copies[COMBINED] = combined
    return copies, rows


# Vectors

Metric = Literal["cosine", "euclidean"]
_COMPONENTS = 64
# Number of images that are converted to float at once to fit the components.
_PCA_BLOCK = 5000


@dataclass(frozen=True)
class Baseline:
    """A method that turns images into search vectors: a baseline of retrieval, or the trained network itself.

    Attributes:
        name: name in the results.
        vectors: maps images `(N, C, H, W)` uint8 to `(N, D)` float32, unit vectors for the cosine.
        metric: similarity of the vectors.
        to_query: maps vectors to query vectors of the same shape.
    """

    name: str
    vectors: Callable[[Tensor], Tensor]
    metric: Metric
    to_query: Callable[[Tensor], Tensor] = lambda vectors: vectors


def pixels(images: Tensor) -> Tensor:
    """Flatten images to pixels in [0, 1]."""
    return images.flatten(1) / 255


def unit_pixels(images: Tensor) -> Tensor:
    """Flatten images to unit vectors of pixels."""
    return functional.normalize(pixels(images), dim=1)


@dataclass(frozen=True)
class PrincipalComponents:
    """Principal components of pixels, compared by cosine, which retrieves more of the class than the distance does.

    Attributes:
        mean: mean image `(P,)`.
        components: first D components, one per column of `(P, D)`, of unit length.
    """

    mean: Tensor
    components: Tensor

    @classmethod
    def fit(cls, images: Tensor, dimensions: int) -> "PrincipalComponents":
        """Fit the components of images `(N, C, H, W)` uint8; there are at most as many as pixels."""
        count = images[0].numel()
        total, products = torch.zeros(count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64)
        for block in images.split(_PCA_BLOCK):
            flat = pixels(block)
            total += flat.sum(dim=0, dtype=torch.float64)
            products += flat.T @ flat
        mean = total / len(images)
        covariance = products / len(images) - torch.outer(mean, mean)
        # The eigenvalues are in ascending order.
        components = torch.linalg.eigh(covariance).eigenvectors[:, -dimensions:].flip(1)
        return cls(mean.float(), components.float().contiguous())

    def transform(self, images: Tensor) -> Tensor:
        """Return the unit vectors `(N, D)` of the coordinates of images."""
        coordinates = torch.cat([(pixels(block) - self.mean) @ self.components for block in images.split(_PCA_BLOCK)])
        return functional.normalize(coordinates, dim=1)


def _baselines(network: TrainedNetwork, images: SearchImages, seed: int) -> list[Baseline]:
    # The components may only see the classes that the network was trained on.
    known = images.catalogue[torch.isin(images.catalogue_labels, images.known_labels)]
    components, untrained = PrincipalComponents.fit(known, _COMPONENTS), network.untrained(seed)
    return [
        Baseline("pixels, cosine", unit_pixels, "cosine"),
        Baseline("pixels, Euclidean", pixels, "euclidean"),
        Baseline(f"{_COMPONENTS} principal components", components.transform, "cosine"),
        Baseline("untrained network", untrained.embed, "cosine"),
    ]


# Maximum number of similarities in memory: 64 MB as float32.
_MAX_SIMILARITIES = 2**24


@torch.inference_mode()
def nearest(
    queries: Tensor,
    catalogue: Tensor,
    top_k: int,
    *,
    metric: Metric = "cosine",
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Return the rows of the nearest catalogue vectors, `(Q, min(top_k, N))`, the nearest first.

    Args:
        queries: vectors `(Q, D)`.
        catalogue: vectors `(N, D)`.
        top_k: number of neighbours.
        metric: cosine expects unit vectors.
        progress: called after each block with its number of queries.
    """
    # |q - c|² = |q|² - 2 (q·c - |c|²/2), where |q|² does not depend on c.
    half_norms = catalogue.square().sum(dim=1) / 2 if metric == "euclidean" else None
    rows = []
    for block in queries.split(max(1, _MAX_SIMILARITIES // max(len(catalogue), 1))):
        similarity = block @ catalogue.T
        if half_norms is not None:
            similarity -= half_norms
        rows.append(similarity.topk(min(top_k, len(catalogue)), dim=1).indices)
        progress(len(block))
    return torch.cat(rows)


# Evaluation


@dataclass(frozen=True)
class SearchEvaluation:
    """Result of an evaluation.

    Attributes:
        searches: retrieval by class, by the name of the task and of the vectors, `NETWORK` first.
        instances: retrieval of originals, by the name of the corruption and of the vectors.
        accuracy: accuracy of the network on the queries of its classes, from the same logits; None without such.
    """

    searches: dict[str, dict[str, LabelledSearchMetrics]]
    instances: dict[str, dict[str, RankingMetrics]]
    accuracy: Interval | None


def evaluate_search(
    network: TrainedNetwork,
    images: SearchImages,
    *,
    class_weight: float = 0.0,
    altered: AlteredCopies | None,
    baselines: bool,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SearchEvaluation:
    """Evaluate exact search by the network's vectors and by untrained baselines.

    Args:
        network: the trained network.
        images: queries and catalogue.
        class_weight: see `search_vectors`.
        altered: altered copies to search by; None for none.
        baselines: also evaluate the baselines.
        seed: seed of the untrained network and of the altered copies.
        progress: called with the number of searches that are done and of all searches.
    """
    tasks = _tasks(images)
    copies, originals = _altered_copies(images, altered, seed)
    methods = [
        Baseline(
            NETWORK,
            lambda batch: torch.from_numpy(search_vectors(network.outputs(batch), class_weight)),
            "cosine",
            lambda vectors: torch.from_numpy(to_query(vectors.numpy(), class_weight)),
        ),
        *(_baselines(network, images, seed) if baselines else []),
    ]
    total = len(methods) * (sum(len(task.queries) for task in tasks.values()) + len(copies) * len(originals))
    done = 0

    def step(queries: int) -> None:
        nonlocal done
        done += queries
        progress(done, total)

    searches: dict[str, dict[str, LabelledSearchMetrics]] = {name: {} for name in tasks}
    instances: dict[str, dict[str, RankingMetrics]] = {name: {} for name in copies}
    for method in methods:
        catalogue, queries = method.vectors(images.catalogue), method.to_query(method.vectors(images.queries))
        for name, task in tasks.items():
            searches[name][method.name] = evaluate_labelled(
                nearest(queries[task.queries], catalogue[task.catalogue], DEPTH, metric=method.metric, progress=step),
                images.query_labels[task.queries],
                images.catalogue_labels[task.catalogue],
                images.class_names,
            )
        for name, pictures in copies.items():
            copy_queries = method.to_query(method.vectors(pictures))
            ranked = nearest(copy_queries, catalogue, DEPTH, metric=method.metric, progress=step)
            instances[name][method.name] = evaluate_instances(ranked, originals)
    return SearchEvaluation(searches, instances, _accuracy(network, images))


def _accuracy(network: TrainedNetwork, images: SearchImages) -> Interval | None:
    known = torch.isin(images.query_labels, images.known_labels)
    if not known.any():
        return None
    predictions = images.known_labels[network.logits(images.queries[known]).argmax(dim=1)]
    return mean_interval(predictions == images.query_labels[known])


# Stored results

MetricPaths = dict[str, tuple[str, ...]]
# File of the stored results of one run, in a folder per split of `Run.search_evaluation`.
METRICS_FILE = "measures.json"
# Place of each metric in the stored results of a search.
METRICS: MetricPaths = {
    "precision@1": ("precision", "1"),
    "precision@10": ("precision", "10"),
    "precision@100": ("precision", "100"),
    "recall@10": ("recall", "10"),
    "mAP@100": ("map_at_100",),
    "mAP@R": ("map_at_r",),
}
INSTANCE_METRICS: MetricPaths = {"recall@1": ("recall", "1"), "recall@10": ("recall", "10")}


def stored_metric(metrics: dict[str, Any], path: Sequence[str]) -> dict[str, float] | None:
    """Return a stored mean with its interval; None if the list of hits was too short for it."""
    value: dict[str, Any] | None = metrics
    for key in path:
        value = value.get(key) if value else None
    return value


def summarise_runs(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute mean, standard deviation and values of each metric over the stored results of several runs.

    Results are keyed by task, vectors and metric. The deviation of a single run is null. Vectors that were not
    evaluated in all runs are left out.
    """
    searches: dict[str, Any] = {}
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome["searches"]):
        by_run = [outcome["searches"][name] for outcome in outcomes if name in outcome["searches"]]
        overall = [{vectors: search["overall"] for vectors, search in run.items()} for run in by_run]
        searches[name] = {
            "chance": MeanStd.of(next(iter(run.values()))["chance"] for run in by_run).mean,
            "by_vectors": _summarise_metrics(overall, METRICS),
        }
    return {
        "runs": [outcome["run"] for outcome in outcomes],
        "unseen": [outcome["unseen"] for outcome in outcomes],
        "split": outcomes[0]["split"],
        "accuracy": _mean_std(outcome["accuracy"]["value"] for outcome in outcomes if outcome["accuracy"]),
        "searches": searches,
        "instances": {
            name: _summarise_metrics([outcome["instances"][name] for outcome in outcomes], INSTANCE_METRICS)
            for name in outcomes[0]["instances"]
        },
    }


def _summarise_metrics(runs: Sequence[dict[str, Any]], paths: MetricPaths) -> dict[str, Any]:
    """Summarise the metrics of each run, both by the name of the vectors."""
    return {
        vectors: {
            name: _mean_std(metric["value"] for run in runs if (metric := stored_metric(run[vectors], path)))
            for name, path in paths.items()
        }
        for vectors in runs[0]
        if all(vectors in run for run in runs)
    }


def _mean_std(numbers: Iterable[float]) -> dict[str, Any] | None:
    values = list(numbers)
    if not values:
        return None
    over_runs = MeanStd.of(values)
    return {"mean": over_runs.mean, "deviation": over_runs.std, "values": values}
