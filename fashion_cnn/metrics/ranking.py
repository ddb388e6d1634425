"""Ranking metrics of search results: precision, recall and mean average precision, with 95% intervals.

All are means over queries, computed on the first `k` results of each query:

    precision@k   fraction of the k results that are relevant.
    recall@k      1 if any of the k results is relevant, else 0: Recall@K of metric learning (Jégou et al., "Product
                  Quantization for Nearest Neighbor Search", 2011; Oh Song et al., 2016, arXiv 1511.06452). The
                  fraction of all relevant products, which has the same name, is precision@k · k / relevant.
    mAP@k         mean of precision@i over the ranks i of the relevant results among the first k, 0 without any.
                  Papers on hashing count this way (Cao et al., "HashNet", 2017, arXiv 1702.00758, whose code leaves
                  out queries without a relevant result). It is normalised by the relevant results among the k, so it
                  does not depend on their number.
    mAP@R         the same sum over the ranks i ≤ R alone, divided by R, the number of relevant products, so that
                  irrelevant results lower it (Musgrave et al., "A Metric Learning Reality Check", 2020, arXiv
                  2003.08505). R is cut off at k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.metrics.intervals import Interval, mean_interval

# Number of results per query that are evaluated.
DEPTH = 100
CUTOFFS = (1, 10, 100)
# Name of the network's embeddings in evaluations, beside the names of the baselines.
NETWORK = "network"


@dataclass(frozen=True)
class RankingMetrics:
    """Metrics of ranked results over all queries, as defined in the module docstring.

    Attributes:
        queries: the number of queries.
        precision: precision@k by k, without the k that exceed the number of results.
        recall: recall@k by k, likewise.
        map_at_100: mAP@100.
        map_at_r: mAP@R.
        curve: precision@1, @2, … @100.
    """

    queries: int
    precision: dict[int, Interval]
    recall: dict[int, Interval]
    map_at_100: Interval
    map_at_r: Interval
    curve: tuple[float, ...]


def evaluate_ranking(relevant: Tensor, total_relevant: Tensor) -> RankingMetrics:
    """Compute the metrics of ranked results.

    Args:
        relevant: `(Q, K)` bool, the relevance of each result, nearest first; the first 100 are evaluated.
        total_relevant: `(Q,)`, the number of relevant products in the catalogue for each query.

    Raises:
        UserError: if there are no queries or no results.
    """
    if not relevant.numel():
        raise UserError(
            f"nothing can be measured: {relevant.shape[0]} queries, {relevant.shape[1]} results each; give 1 or more."
        )
    hits = relevant[:, :DEPTH].double()
    precision = hits.cumsum(dim=1) / torch.arange(1, hits.shape[1] + 1)
    relevant_precision = precision * hits
    r = total_relevant.clamp(min=1, max=hits.shape[1])
    within_r = torch.arange(1, hits.shape[1] + 1) <= r[:, None]
    cutoffs = [k for k in CUTOFFS if k <= hits.shape[1]]
    return RankingMetrics(
        queries=len(hits),
        precision={k: mean_interval(precision[:, k - 1]) for k in cutoffs},
        recall={k: mean_interval(hits[:, :k].amax(dim=1)) for k in cutoffs},
        map_at_100=mean_interval(relevant_precision.sum(dim=1) / hits.sum(dim=1).clamp(min=1)),
        map_at_r=mean_interval((relevant_precision * within_r).sum(dim=1) / r),
        curve=tuple(precision.mean(dim=0).tolist()),
    )


@dataclass(frozen=True)
class LabelledSearchMetrics:
    """Metrics of a search in which the products of the query's class are relevant.

    Attributes:
        overall: the metrics over all queries.
        by_class: the metrics by class of the query.
        catalogue: the number of products.
        chance: the expected precision of a random ranking.
    """

    overall: RankingMetrics
    by_class: dict[str, RankingMetrics]
    catalogue: int
    chance: float


def evaluate_labelled(
    ranked: Tensor, query_labels: Tensor, catalogue_labels: Tensor, class_names: tuple[str, ...]
) -> LabelledSearchMetrics:
    """Evaluate a search in which the products of the query's class are relevant.

    Args:
        ranked: `(Q, K)`, catalogue rows of the results, nearest first.
        query_labels: `(Q,)`, the class of each query.
        catalogue_labels: `(N,)`, the class of each product.
        class_names: the names of all classes.
    """
    relevant = catalogue_labels[ranked] == query_labels[:, None]
    total_relevant = catalogue_labels.bincount(minlength=len(class_names))[query_labels]
    return LabelledSearchMetrics(
        overall=evaluate_ranking(relevant, total_relevant),
        by_class={
            class_names[label]: evaluate_ranking(relevant[query_labels == label], total_relevant[query_labels == label])
            for label in query_labels.unique().tolist()
        },
        catalogue=len(catalogue_labels),
        chance=(total_relevant.double().mean() / len(catalogue_labels)).item(),
    )


def evaluate_instances(ranked: Tensor, originals: Tensor) -> RankingMetrics:
    """Evaluate a search in which a single product is relevant.

    Args:
        ranked: `(Q, K)`, catalogue rows of the results, nearest first.
        originals: `(Q,)`, the catalogue row of the relevant product of each query.
    """
    return evaluate_ranking(ranked == originals[:, None], torch.ones(len(originals)))


def midranks(values: Tensor) -> Tensor:
    """Ranks `(N,)` float64 of values `(N,)`, from 1; equal values share the mean of their ranks."""
    _, index, counts = values.unique(return_inverse=True, return_counts=True)
    counts = counts.double()
    return (counts.cumsum(0) - (counts - 1) / 2)[index]
