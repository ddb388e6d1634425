"""Colours of the item in a photograph: CIELAB, foreground, histogram and colour names. NumPy only.

CIELAB distances approximate perceived differences: about 2 is just noticeable, black and white are 100 apart (CIE 1976,
white point D65).
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from numpy.typing import NDArray

# This version is increased when histograms or names of the same pixels change, which invalidates catalogues.
COLOUR_VERSION = 1
# Linear light of each sRGB value, and sRGB primaries in XYZ relative to the white point D65.
_LINEAR = np.where(
    np.arange(256) / 255 <= 0.04045, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
).astype(np.float32)
_XYZ = np.array(
    [[0.433953, 0.376219, 0.189828], [0.212673, 0.715152, 0.072175], [0.017758, 0.109477, 0.872765]], dtype=np.float32
)
# A pixel belongs to the item if its CIELAB distance to the background exceeds a threshold between these two, which
# depends on the noise of the border.
_MIN_DISTANCE, _MAX_DISTANCE = 9.0, 18.0
# Minimum share of the border that shows the background.
_PLAIN_BORDER = 0.7
# Minimum share of the picture that an item covers.
_MIN_ITEM = 0.003
# Margin around each of several items, in pixels of a picture of about 112. Items whose margins overlap are one, since
# straps and pale parts that join them may be missing from the mask; the margin also shows a later preparation that the
# background is plain.
_ITEM_GAP = 2
# Minimum share of the picture that each of several items covers: a shoe beside a dress does, dust and a letter of a
# caption do not.
_MIN_SEPARATE = 0.01
# Maximum number of items: more parts are rather a pattern, or one item in pieces.
_MAX_SEPARATE = 10
# A shadow keeps at least 30% of the light of the background, which is 0.3 ** (1 / 3) of L* + 16: the darker core of one
# touches its item.
_MIN_SHADOW_LIGHT = 0.3 ** (1 / 3)
# Maximum distance in a* and b* between a shadow and background of the same lightness, just above that of noise.
_SHADOW_CHROMA = 6.0
# Bin centres of the histogram: lightness, and each of a (green to red) and b (blue to yellow).
_LIGHTNESS = np.linspace(10, 90, 3, dtype=np.float32)
_CHROMA = np.linspace(-60, 60, 7, dtype=np.float32)
HISTOGRAM_SIZE = len(_LIGHTNESS) * len(_CHROMA) ** 2
# Histograms and names are computed on a copy with this side in pixels.
_SIDE = 56
# The mask of an item on a patchwork is computed on a copy with this side in pixels.
_MASK_SIDE = 112
# Number of patches along each side of a patchwork.
_PATCHES = 12
# The basic colour terms (Berlin and Kay 1969).
COLOUR_NAMES = ("black", "grey", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
_BLACK, _GREY, _WHITE, _RED, _ORANGE, _YELLOW, _GREEN, _BLUE, _PURPLE, _PINK, _BROWN = range(len(COLOUR_NAMES))
# Hue angles in degrees at which saturated colours of medium lightness begin, and their terms.
_HUES = (
    (0, _PINK),
    (12, _RED),
    (48, _ORANGE),
    (76, _YELLOW),
    (103, _GREEN),
    (205, _BLUE),
    (305, _PURPLE),
    (338, _PINK),
)
# A colour with less chroma is black, grey or white.
_MIN_CHROMA = 11.0
# Grey has a lightness between these two.
_GREY_FROM, _GREY_TO = 40.0, 82.0
# Weight of a vote for black, grey or white, since shadows, highlights and metal have these colours too.
_ACHROMATIC_WEIGHT = 0.3


def to_lab(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert sRGB `(…, 3)` to CIELAB: lightness 0 to 100, a and b about -100 to 100."""
    xyz = _LINEAR[pixels] @ _XYZ.T
    # The cube root of the standard is linear below (6 / 29) ** 3.
    scaled = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(scaled, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def foreground(lab: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Find the item on a plain or evenly shaded background.

    The background is a linear function of the position in each channel, fitted to the border with the least absolute
    deviation; the item is what differs from it.

    Args:
        lab: a small picture in CIELAB, `(H, W, 3)`.

    Returns:
        The mask of the item, `(H, W)`; None if the border is not plain, or nothing differs from it.
    """
    background = _plain_background(lab)
    if background is None:
        return None
    item = _differing(lab, *background)
    return item if item.mean() >= _MIN_ITEM else None


def separate_items(lab: NDArray[np.float32]) -> list[tuple[int, int, int, int]]:
    """Find the items on a plain or evenly shaded background that do not touch each other.

    A part that is merely darker than the background is no item, since it may be a shadow. A larger part that reaches
    the edge may be a table below or a hand: then the picture is taken for a scene.

    Args:
        lab: a picture of about 112 pixels in CIELAB, `(H, W, 3)`.

    Returns:
        Left, top, right and bottom of each in pixels, with some background around it, the largest first. Empty in a
        scene, and if there are fewer than two or too many.
    """
    background = _plain_background(lab)
    if background is None:
        return []
    item = _differing(lab, *background)
    solid = item & ~_is_shadow(lab, background[0])
    height, width = item.shape
    boxes = [
        (left, top, right, bottom)
        for left, top, right, bottom in _merge_overlapping(_component_boxes(item))
        # Boxes do not overlap: the pixels of one are those of its item.
        if solid[top:bottom, left:right].sum() >= _MIN_SEPARATE * item.size
    ]
    if any(left == 0 or top == 0 or right == width or bottom == height for left, top, right, bottom in boxes):
        return []
    boxes.sort(key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
    return boxes if 2 <= len(boxes) <= _MAX_SEPARATE else []


def _is_shadow(lab: NDArray[np.float32], background: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which pixels are the background with less light, which scales L* + 16, a* and b* by one factor."""
    light = (lab[..., 0] + 16) / np.maximum(background[..., 0] + 16, 1.0)
    chroma = np.linalg.norm(lab[..., 1:] - light[..., None] * background[..., 1:], axis=-1)
    shadow: NDArray[np.bool_] = (light < 1) & (light >= _MIN_SHADOW_LIGHT) & (chroma < _SHADOW_CHROMA)
    return shadow


def _component_boxes(mask: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """Return the boxes of the connected parts of a mask, diagonal neighbours included, with `_ITEM_GAP` around them."""
    height, width = mask.shape
    remaining = set(zip(*(places.tolist() for places in np.nonzero(mask)), strict=True))
    boxes = []
    while remaining:
        component = [remaining.pop()]
        for row, column in component:  # The loop also visits the neighbours that it appends.
            around = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & remaining
            remaining -= around
            component += around
        rows, columns = zip(*component, strict=True)
        left, right = max(0, min(columns) - _ITEM_GAP), min(width, max(columns) + 1 + _ITEM_GAP)
        top, bottom = max(0, min(rows) - _ITEM_GAP), min(height, max(rows) + 1 + _ITEM_GAP)
        boxes.append((left, top, right, bottom))
    return boxes


def _merge_overlapping(boxes: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Replace boxes that overlap by the one around them until none do."""
    merged: list[tuple[int, int, int, int]] = []
    for box in boxes:
        # A larger box may reach further ones.
        while overlapping := [
            other
            for other in merged
            if box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        ]:
            merged = [other for other in merged if other not in overlapping]
            lefts, tops, rights, bottoms = zip(box, *overlapping, strict=True)
            box = (min(lefts), min(tops), max(rights), max(bottoms))
        merged.append(box)
    return merged


def _plain_background(lab: NDArray[np.float32]) -> tuple[NDArray[np.float32], float] | None:
    """Fit the background of a picture, see `foreground`.

    Returns:
        Its colour at each pixel, `(H, W, 3)`, and the distance above which a pixel differs; None if it is not plain.
    """
    height, width = lab.shape[:2]
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    positions = np.stack([np.ones_like(rows), rows, columns], axis=-1).astype(np.float32)
    edge = max(1, min(height, width) // 50)
    border = np.ones((height, width), dtype=bool)
    border[edge:-edge, edge:-edge] = False
    places, colours = positions[border], lab[border]
    background = np.zeros((3, 3), dtype=np.float32)
    background[0] = np.median(colours, axis=0)
    # Iteratively reweighted least squares, which begins at the median colour.
    for _ in range(8):
        weights = 1 / np.maximum(np.linalg.norm(colours - places @ background, axis=1), 1.0)[:, None]
        moments = places.T @ (weights * places) + 1e-3 * np.eye(3, dtype=np.float32)
        background = np.linalg.solve(moments, places.T @ (weights * colours)).astype(np.float32)
    fitted = positions @ background
    distances = np.linalg.norm(lab - fitted, axis=-1)
    limit = float(np.clip(4 * np.median(distances[border]), _MIN_DISTANCE, _MAX_DISTANCE))
    if (distances[border] <= limit).mean() < _PLAIN_BORDER:
        return None
    return fitted, limit


def _differing(lab: NDArray[np.float32], background: NDArray[np.float32], limit: float) -> NDArray[np.bool_]:
    """Return which pixels `(H, W)` differ from the background."""
    distances = np.linalg.norm(lab - background, axis=-1)
    # The median of neighbours removes single pixels of noise.
    mask = Image.fromarray(np.uint8(255) * (distances > limit)).filter(ImageFilter.MedianFilter(3))
    differing: NDArray[np.bool_] = np.asarray(mask) > 0
    return differing


def has_item(picture: NDArray[np.uint8]) -> bool:
    """Return whether a picture `(3, H, W)` shows an item on a plain or evenly shaded background."""
    return foreground(_small_lab(picture)) is not None


def on_patchwork(picture: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Put the item of a picture on a patchwork of random colours in place of its plain background.

    Args:
        picture: `(3, H, W)`, whose pixels determine the patchwork.

    Returns:
        The changed picture `(3, H, W)`; None if no item stands out from the background.
    """
    item = foreground(_small_lab(picture, _MASK_SIDE))
    if item is None:
        return None
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    random = np.random.default_rng(zlib.crc32(picture.tobytes()))
    patches = Image.fromarray(random.integers(0, 256, (_PATCHES, _PATCHES, 3), dtype=np.uint8))
    changed = patches.resize(image.size, Image.Resampling.BICUBIC)
    mask = Image.fromarray(np.uint8(255) * item).resize(image.size, Image.Resampling.BICUBIC)
    changed.paste(image, mask=mask.filter(ImageFilter.GaussianBlur(min(image.size) / 150)))
    return np.asarray(changed).transpose(2, 0, 1)


def _small_lab(picture: NDArray[np.uint8], side: int = _SIDE) -> NDArray[np.float32]:
    """Return a copy of `side` pixels in CIELAB."""
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    return to_lab(np.asarray(image.resize((side, side), Image.Resampling.BOX, reducing_gap=None)))


def _item_pixels(picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return CIELAB pixels `(P, 3)` and their weights `(P,)`: the item, or all with the middle weighing most."""
    lab = _small_lab(picture)
    item = foreground(lab)
    if item is not None:
        # Pixels on the outline mix item and background.
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


def _terms(lab: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the position in `COLOUR_NAMES` of the term for each pixel `(P, 3)`."""
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    starts, terms = (np.array(column) for column in zip(*_HUES, strict=True))
    term = terms[np.searchsorted(starts, hue, side="right") - 1]
    is_warm = (hue >= 25) & (hue < 95)
    # Dark or dull orange and yellow are brown, and a light red is pink.
    term = np.where(is_warm & ((chroma < 38) | (lightness < 48)) & ((hue >= 48) | (chroma < 45)), _BROWN, term)
    term = np.where((hue < 48) & (lightness > 62) & (chroma < 60), _PINK, term)
    term = np.where((hue >= 95) & (hue < 103) & (lightness < 62), _GREEN, term)
    achromatic = np.where(lightness < _GREY_FROM, _BLACK, np.where(lightness > _GREY_TO, _WHITE, _GREY))
    return np.where((chroma < _MIN_CHROMA) | (lightness < 12), achromatic, term)


def colour_name(picture: NDArray[np.uint8]) -> str:
    """Name the main colour of the item in a picture `(3, H, W)`: one of `COLOUR_NAMES`.

    Each pixel votes for the term of its colour; black, grey and white have fewer votes, since shadows, highlights and
    metal have them too.
    """
    lab, weights = _item_pixels(picture)
    votes = np.bincount(_terms(lab), weights, minlength=len(COLOUR_NAMES))
    votes[[_BLACK, _GREY, _WHITE]] = _ACHROMATIC_WEIGHT * votes[[_BLACK, _GREY, _WHITE]]
    return COLOUR_NAMES[int(votes.argmax())]
