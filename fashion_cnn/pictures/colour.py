"""Colours of the item in a photograph: CIELAB, foreground, histogram and colour names. NumPy only.

CIELAB distances approximate perceived differences: about 2 is just noticeable, black and white are 100 apart (CIE 1976,
white point D65).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Increased when histograms or names of the same pixels change, which invalidates catalogues.
COLOUR_VERSION = 1
# Linear light of each sRGB value, and sRGB primaries in XYZ relative to the white point D65.
_LINEAR = np.where(
    np.arange(256) / 255 <= 0.04045, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
).astype(np.float32)
_XYZ = np.array(
    [[0.433953, 0.376219, 0.189828], [0.212673, 0.715152, 0.072175], [0.017758, 0.109477, 0.872765]], dtype=np.float32
)
# Distance to the ground above which a pixel belongs to the item: at least the first, at most the second.
_MIN_DISTANCE, _MAX_DISTANCE = 9.0, 18.0
# Share of the border that has to show the ground, and the smallest share of the picture that is an item.
_PLAIN_BORDER, _MIN_ITEM = 0.7, 0.003
# Bin centres of the histogram: lightness, and each of a (green to red) and b (blue to yellow).
_LIGHTNESS = np.linspace(10, 90, 3, dtype=np.float32)
_CHROMA = np.linspace(-60, 60, 7, dtype=np.float32)
HISTOGRAM_SIZE = len(_LIGHTNESS) * len(_CHROMA) ** 2
# Side of the picture that histograms and names are computed of.
_SIDE = 56
# Typical sRGB values of the basic colour terms (Berlin and Kay 1969), light and dark ones.
_TERMS = {
    "black": ("#000000", "#1c1c1e", "#2a2a2a"),
    "grey": ("#4d4d4d", "#808080", "#a9a9a9", "#c4c4c4"),
    "white": ("#ffffff", "#f0f0f0", "#e4e4e2"),
    "red": ("#ff0000", "#d0191e", "#a31420", "#800010", "#e03c3c"),
    "orange": ("#ff8000", "#f0781e", "#e8622a", "#ffa333"),
    "yellow": ("#ffff00", "#ffd700", "#f0c818", "#fff176", "#d8d83c"),
    "green": ("#00ff00", "#008000", "#2e8b3d", "#6b8e23", "#90d060", "#14502a", "#a8d8a8"),
    "blue": ("#0000ff", "#1e5ad2", "#191970", "#4682c8", "#87c4f0", "#2a4a78", "#00a8c8", "#1a6a80"),
    "purple": ("#800080", "#8a3ab0", "#b06ad0", "#4b2a78", "#c8a2e0"),
    "pink": ("#ff69b4", "#ffb6c8", "#f08fa8", "#e0409a", "#ffc8d8"),
    "brown": ("#8b4513", "#6b4226", "#a0724a", "#4a2c1a", "#c8a478", "#dcc6a0"),
}
COLOUR_NAMES = tuple(_TERMS)
# Achromatic terms, which name shadows, highlights and metal too, and their weight in a vote of the pixels.
_ACHROMATIC, _ACHROMATIC_WEIGHT = ("black", "grey", "white"), 0.4


def to_lab(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert sRGB `(…, 3)` to CIELAB: lightness 0 to 100, a and b about -100 to 100."""
    xyz = _LINEAR[pixels] @ _XYZ.T
    # Linear below the cube of 6/29, as the standard has it.
    scaled = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(scaled, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def foreground(lab: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Find the item on a plain or evenly shaded ground.

    The ground is a linear function of the position in each channel, fitted to the border with the least absolute
    deviation; the item is what differs from it.

    Args:
        lab: a small picture in CIELAB, `(H, W, 3)`.

    Returns:
        The mask of the item, `(H, W)`; None if the border is not plain, or nothing differs from it.
    """
    height, width = lab.shape[:2]
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    positions = np.stack([np.ones_like(rows), rows, columns], axis=-1).astype(np.float32)
    edge = max(1, min(height, width) // 50)
    border = np.ones((height, width), dtype=bool)
    border[edge:-edge, edge:-edge] = False
    places, colours = positions[border], lab[border]
    ground = np.zeros((3, 3), dtype=np.float32)
    ground[0] = np.median(colours, axis=0)
    # Iteratively reweighted least squares, which begins at the median colour.
    for _ in range(8):
        weights = 1 / np.maximum(np.linalg.norm(colours - places @ ground, axis=1), 1.0)[:, None]
        moments = places.T @ (weights * places) + 1e-3 * np.eye(3, dtype=np.float32)
        ground = np.linalg.solve(moments, places.T @ (weights * colours)).astype(np.float32)
    distances = np.linalg.norm(lab - positions @ ground, axis=-1)
    limit = float(np.clip(4 * np.median(distances[border]), _MIN_DISTANCE, _MAX_DISTANCE))
    if (distances[border] <= limit).mean() < _PLAIN_BORDER:
        return None
    # The median of neighbours removes single pixels of noise.
    mask = Image.fromarray(np.uint8(255) * (distances > limit)).filter(ImageFilter.MedianFilter(3))
    item = np.asarray(mask) > 0
    return item if item.mean() >= _MIN_ITEM else None


def _item_pixels(picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return CIELAB pixels `(P, 3)` and their weights `(P,)`: the item, or all with the middle weighing most."""
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    lab = to_lab(np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=None)))
    item = foreground(lab)
    if item is not None:
        # Pixels on the outline mix item and ground.
        inner = np.asarray(Image.fromarray(item).filter(ImageFilter.MinFilter(3)))
        item = inner if inner.sum() >= item.sum() / 2 else item
        return lab[item], np.full(int(item.sum()), 1 / item.sum(), dtype=np.float32)
    rows, columns = np.mgrid[-1 : 1 : _SIDE * 1j, -1 : 1 : _SIDE * 1j]
    weights = np.exp(-2 * (rows**2 + columns**2)).astype(np.float32).ravel()
    return lab.reshape(-1, 3), weights / weights.sum()


def colour_histogram(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe the colours of the item in a picture.

    Each pixel counts in the bins around it, in proportion to its nearness. The cosine of two histograms is their
    Bhattacharyya coefficient, since a component is the square root of the share.

    Args:
        picture: `(3, H, W)`.

    Returns:
        A unit vector `(HISTOGRAM_SIZE,)`.
    """
    lab, weights = _item_pixels(picture)
    shares = np.zeros((len(_LIGHTNESS), len(_CHROMA), len(_CHROMA)), dtype=np.float32)
    lower, upper = zip(*(_neighbours(lab[:, i], c) for i, c in enumerate((_LIGHTNESS, _CHROMA, _CHROMA))), strict=True)
    for corner in np.ndindex(2, 2, 2):
        sides = [(lower, upper)[side][channel] for channel, side in enumerate(corner)]
        index = tuple(place for place, _ in sides)
        np.add.at(shares, index, weights * np.prod([share for _, share in sides], axis=0))
    histogram: NDArray[np.float32] = np.sqrt(shares / shares.sum()).ravel()
    return histogram


def _neighbours(
    values: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[tuple[NDArray[np.intp], NDArray[np.float32]], tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Return the bin below and the bin above each value, each with its share of the value."""
    places = np.clip((values - centres[0]) / (centres[1] - centres[0]), 0, len(centres) - 1)
    below = np.minimum(places.astype(np.intp), len(centres) - 2)
    fraction = (places - below).astype(np.float32)
    return (below, 1 - fraction), (below + 1, fraction)


def colour_name(picture: NDArray[np.uint8]) -> str:
    """Name the main colour of the item in a picture `(3, H, W)`: one of `COLOUR_NAMES`.

    Each pixel votes for the nearest typical colour; black, grey and white have fewer votes, since shadows, highlights
    and metal have them too.
    """
    lab, weights = _item_pixels(picture)
    nearest = np.linalg.norm(lab[:, None] - _TYPICAL_LAB[None], axis=-1).argmin(axis=1)
    votes = np.bincount(_TYPICAL_TERM[nearest], weights, minlength=len(COLOUR_NAMES)) * _VOTE_WEIGHTS
    return COLOUR_NAMES[int(votes.argmax())]


_TYPICAL_LAB = to_lab(np.array([[*bytes.fromhex(code[1:])] for codes in _TERMS.values() for code in codes], np.uint8))
_TYPICAL_TERM = np.repeat(np.arange(len(_TERMS)), [len(codes) for codes in _TERMS.values()])
_VOTE_WEIGHTS = np.array([_ACHROMATIC_WEIGHT if name in _ACHROMATIC else 1.0 for name in COLOUR_NAMES])
