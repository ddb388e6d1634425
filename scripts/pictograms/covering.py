"""Occlusion of a symbol by a shape that hides a given share of it."""

import numpy as np
from PIL import Image

from pictograms.backgrounds import background
from pictograms.colours import random_colour


def cover(picture: Image.Image, mask: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Draw an edge, a bar or a disc that hides `share` of the mask's pixels, 0 to 1."""
    rows, columns = np.nonzero(np.asarray(mask) > 127)
    if not len(rows):
        return picture
    middle = rng.integers(len(rows))
    y, x = np.mgrid[: picture.height, : picture.width]
    y, x = y - rows[middle], x - columns[middle]
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    distance = {"edge": along, "bar": np.abs(along), "disc": np.hypot(x, y)}[str(rng.choice(["edge", "bar", "disc"]))]
    # The quantile of the distances of the symbol's pixels hides that share of them.
    hidden = distance <= np.quantile(distance[rows, columns], share)
    kind = str(rng.choice(["plain", "gradient", "pattern", "scene"]))
    front = background(kind, random_colour(rng), picture.width, rng)
    return Image.fromarray(np.where(hidden[..., None], front, np.asarray(picture)).astype(np.uint8))
