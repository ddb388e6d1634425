"""Exact nearest neighbours of many vectors, a block at a time."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "euclidean"]
# Similarities held at once: 64 MB as float32, however large the catalogue is.
_HELD = 2**24


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
