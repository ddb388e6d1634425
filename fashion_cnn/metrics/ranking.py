"""How good ranked lists are: precision, recall and mean average precision, each with its 95% interval.

All are means over queries, of what lies among the first `k` places of each query's list:

    precision@k   the share of the k that are relevant
    recall@k      1 where any of the k is relevant, else 0: Recall@K of metric learning (Jégou et al., "Product
                  Quantization for Nearest Neighbor Search", 2011; Oh Song et al., 2016, arXiv 1511.06452). The share of
                  all relevant products that were found, which is also called so, is precision@k · k / relevant.
    mAP@k         average precision of the first k places: the mean of precision@i over the places i of relevant ones,
                  0 where there is none. That is how hashing papers count (Cao et al., "HashNet", 2017, arXiv
                  1702.00758, whose code leaves out queries without a relevant one): it is normalised by the relevant
                  ones among the k, and says nothing of how many they are.
    mAP@R         the same sum divided by min(k, relevant), so that places which are not relevant count against it
                  (Musgrave et al., "A Metric Learning Reality Check", 2020, arXiv 2003.08505, with R cut at k).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.metrics.intervals import Interval, mean_interval

# The first so many places count.
DEPTH = 100
CUTOFFS = (1, 10, 100)
# The name of the network's own vectors among those that are compared.
NETWORK = "network"


@dataclass(frozen=True)
class RankingMetrics:
    """precision, recall: by k. map_at_100, map_at_r: see this file's head. curve: precision@1, @2, … @100.

    queries: how many there were. A list shorter than k has no figure for that k.
    """

    queries: int
    precision: dict[int, Interval]
    recall: dict[int, Interval]
    map_at_100: Interval
    map_at_r: Interval
    curve: tuple[float, ...]


def evaluate_ranking(relevant: Tensor, in_all: Tensor) -> RankingMetrics:
    """Measure lists: `relevant` `(Q, K)` bool, the nearest first, of which the first 100 count.

    in_all: how many relevant products the catalogue holds for each query, `(Q,)`.
    Raises UserError where there is nothing to measure.
    """
    if not relevant.numel():
        raise UserError("There is no query, or no product to find: nothing can be measured.")
    hits = relevant[:, :DEPTH].double()
    places = torch.arange(1, hits.shape[1] + 1)
    precision = hits.cumsum(dim=1) / places
    summed = (precision * hits).sum(dim=1)
    cutoffs = [k for k in CUTOFFS if k <= hits.shape[1]]
    return RankingMetrics(
        queries=len(hits),
        precision={k: mean_interval(precision[:, k - 1]) for k in cutoffs},
        recall={k: mean_interval(hits[:, :k].amax(dim=1)) for k in cutoffs},
        map_at_100=mean_interval(summed / hits.sum(dim=1).clamp(min=1)),
        map_at_r=mean_interval(summed / in_all.clamp(min=1, max=hits.shape[1])),
        curve=tuple(precision.mean(dim=0).tolist()),
    )


@dataclass(frozen=True)
class LabelledSearchMetrics:
    """What a search by labelled queries comes to: a product is relevant where it is of the query's class.

    by_class: by the class of the query. chance: precision of a random order.
    """

    overall: RankingMetrics
    by_class: dict[str, RankingMetrics]
    catalogue: int
    chance: float


def evaluate_labelled(
    ranked: Tensor, query_labels: Tensor, catalogue_labels: Tensor, class_names: tuple[str, ...]
) -> LabelledSearchMetrics:
    """Measure lists of catalogue rows `(Q, K)`, the nearest first, by the labels `(Q,)` and `(N,)` of both sides."""
    relevant = catalogue_labels[ranked] == query_labels[:, None]
    in_all = catalogue_labels.bincount(minlength=len(class_names))[query_labels]
    return LabelledSearchMetrics(
        overall=evaluate_ranking(relevant, in_all),
        by_class={
            class_names[label]: evaluate_ranking(relevant[query_labels == label], in_all[query_labels == label])
            for label in query_labels.unique().tolist()
        },
        catalogue=len(catalogue_labels),
        chance=(in_all.double().mean() / len(catalogue_labels)).item(),
    )


def evaluate_instances(ranked: Tensor, originals: Tensor) -> RankingMetrics:
    """Measure lists of catalogue rows `(Q, K)` of which one alone is relevant, each query's original `(Q,)`."""
    return evaluate_ranking(ranked == originals[:, None], torch.ones(len(originals)))
