"""Where products lie among each other: their vectors on the plane that holds most of their variance."""

from collections import Counter
from dataclasses import dataclass

import torch

from fashion_cnn.retrieval.snapshot import Snapshot

_POINTS = 2000
# As many colours as can be told from each other.
_CATEGORIES = 10
OTHERS = "all others"


@dataclass(frozen=True)
class Projection:
    """points: by category, the largest first, the places `(x, y)` of some of its products, 0 to 1. explained: the
    share of the variance that the plane holds. sampled: how many products are shown.
    """

    points: dict[str, tuple[tuple[float, float], ...]]
    explained: float
    sampled: int


def projection(snapshot: Snapshot) -> Projection:
    """The principal components of 2,000 products at most, picked by chance and the same each time."""
    if not len(snapshot):
        return Projection({}, 0.0, 0)
    picked = torch.randperm(len(snapshot), generator=torch.Generator().manual_seed(0))[:_POINTS].tolist()
    categories = snapshot.attributes["category"].to_pylist()
    vectors = snapshot.vectors_of(picked)
    centred = vectors - vectors.mean(dim=0)
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    places = centred @ axes[:2].T
    if places.shape[1] < 2:  # of a single product, or of vectors of one dimension
        places = torch.nn.functional.pad(places, (0, 2 - places.shape[1]))
    low, high = places.amin(dim=0), places.amax(dim=0)
    places = (places - low) / (high - low).clamp(min=1e-12)
    named = [name for name, _ in Counter(categories).most_common(_CATEGORIES)]
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in (*named, OTHERS)}
    for row, (x, y) in zip(picked, places.tolist(), strict=True):
        points[categories[row] if categories[row] in points else OTHERS].append((x, y))
    share = (spread[:2].square().sum() / spread.square().sum().clamp(min=1e-12)).item()
    return Projection({name: tuple(those) for name, those in points.items() if those}, share, len(picked))
