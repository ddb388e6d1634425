"""Stratified, seeded selections of a labelled data set."""

import torch
from torch import Tensor

from fashion_cnn.data.seeding import derive_seed


def stratified_order(targets: Tensor, seed: int) -> Tensor:
    """A permutation `(N,)` of which every prefix holds the classes in their true proportions.

    targets: `(N,)` int64 class indices. Each class is shuffled, then the classes are interleaved,
    so a longer prefix contains every shorter one (learning curves stay nested).
    """
    generator = torch.Generator().manual_seed(derive_seed("split", seed))
    order = torch.randperm(len(targets), generator=generator)
    shuffled = targets[order]
    place = torch.empty(len(targets), dtype=torch.float64)
    for label in targets.unique():
        members = (shuffled == label).nonzero().squeeze(1)
        # The k-th of n lies at (k + 1/2) / n of the way: any prefix takes its share of each class.
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[place.argsort(stable=True)]
