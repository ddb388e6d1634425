"""Composition of a picture from a symbol and a background, with the settings of a variation."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pictograms.backgrounds import Pixels, background
from pictograms.colours import negative, pair, random_colour, readable
from pictograms.covering import cover
from pictograms.symbols import Colour, Symbol
from pictograms.variation import Variation

# Pictures are drawn larger by this factor, then reduced, for smooth edges.
OVERSAMPLING = 2
# Large text needs a contrast ratio of 3 (WCAG 2.2, 1.4.3); a logo needs less on a plain background, more on a busy one.
MIN_CONTRAST = 2.4
MIN_CONTRAST_ON_BUSY = 3.5
BUSY = ("scene", "clutter")
# Maximum length of a symbol, as a share of the picture's side.
MAX_LENGTH = 0.95


def compose(symbol: Symbol, variation: Variation, size: int, rng: np.random.Generator) -> Image.Image:
    """Compose an RGB picture `(size, size)`; `rng` draws whatever the variation does not fix."""
    side = size * OVERSAMPLING
    if symbol.one_colour or symbol.colour is None:
        ink, ground = pair(variation.scheme, symbol.colour, rng)
    else:
        # A symbol with several colours keeps them: adapt the ground to them.
        ink, ground = pair(variation.scheme, negative(symbol.colour), rng)
        ground = readable(ground, symbol.colour, MIN_CONTRAST)
    corners = _corners(variation, symbol.elongation, rng)
    placed = _placed(symbol.picture, corners, side)
    mask = placed.getchannel("A")
    behind = random_colour(rng) if variation.badge else ground
    pixels = background(variation.background, behind, side, rng)
    picture = Image.fromarray(pixels.astype(np.uint8))
    if variation.badge:
        larger = _grown(corners, rng.uniform(1.25, 1.5))
        plate = _placed(_plate(symbol.picture.width, rng), larger, side).getchannel("A")
        _paste_shadow(picture, plate, rng)
        picture.paste(ground, mask=plate)
    # Adapt the ink to the pixels that are actually behind the symbol.
    if symbol.one_colour:
        is_busy = variation.background in BUSY and not variation.badge
        contrast = MIN_CONTRAST_ON_BUSY if is_busy else MIN_CONTRAST
        inked = Image.new("RGB", picture.size, readable(ink, _mean_under(picture, mask), contrast))
    else:
        inked = placed.convert("RGB")
    if variation.shadow:
        _paste_shadow(picture, mask, rng)
    picture.paste(inked, mask=mask)
    if variation.covered:
        picture = cover(picture, mask, variation.covered, rng)
    return _photographed(picture, variation, size, rng)


def _corners(variation: Variation, elongation: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the corners `(4, 2)` of the symbol's square, from the upper left clockwise, as shares of the side."""
    length = min(variation.scale * elongation**0.5, MAX_LENGTH)
    angle = np.deg2rad(variation.angle)
    turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * length / 2 @ turned
    corners += rng.uniform(-1, 1, (4, 2)) * variation.tilt * length
    # A corner may lie slightly outside of the picture: few symbols fill the corners of their square.
    reach = np.abs(corners).max(axis=0)
    return corners + 0.5 + np.array([variation.x, variation.y]) * np.maximum(0.5 + 0.03 - reach, 0)


def _grown(corners: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    middle = corners.mean(axis=0)
    return middle + (corners - middle) * factor


def _placed(drawing: Image.Image, corners: NDArray[np.float64], side: int) -> Image.Image:
    """Draw the square RGBA drawing with these corners on a transparent `(side, side)`."""
    # Reduce it first: the transformation samples single pixels.
    length = max(8, round(np.linalg.norm(np.diff(corners, axis=0), axis=1).max() * side))
    if length < drawing.width:
        drawing = drawing.resize((length, length), Image.Resampling.LANCZOS)
    end = drawing.width
    back = _perspective(corners * side, np.array([[0, 0], [end, 0], [end, end], [0, end]]))
    return drawing.transform((side, side), Image.Transform.PERSPECTIVE, back, Image.Resampling.BICUBIC)


def _perspective(sources: NDArray[np.float64], targets: NDArray[np.float64]) -> list[float]:
    """Return Pillow's eight coefficients of the perspective transform that maps four points to four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(sources, targets, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return [float(number) for number in np.linalg.solve(np.array(rows), np.array(values))]


def _plate(length: int, rng: np.random.Generator) -> Image.Image:
    """Draw a disc, or a square with rounded corners."""
    plate = Image.new("RGBA", (length, length))
    radius = length / 2 if rng.random() < 0.35 else rng.uniform(0, 0.3) * length
    ImageDraw.Draw(plate).rounded_rectangle((0, 0, length - 1, length - 1), radius, fill=(0, 0, 0, 255))
    return plate


def _paste_shadow(picture: Image.Image, mask: Image.Image, rng: np.random.Generator) -> None:
    side = picture.width
    x, y = (round(share * side) for share in rng.uniform(-0.03, 0.03, 2))
    soft = ImageChops.offset(mask, x, y).filter(ImageFilter.GaussianBlur(side * rng.uniform(0.005, 0.025)))
    picture.paste((0, 0, 0), mask=soft.point(lambda value: round(value * 0.55)))


def _mean_under(picture: Image.Image, mask: Image.Image) -> Colour:
    weights = np.asarray(mask, dtype=np.float64)
    red, green, blue = np.average(np.asarray(picture), axis=(0, 1), weights=weights + 1e-6)
    return round(red), round(green), round(blue)


def _photographed(picture: Image.Image, variation: Variation, size: int, rng: np.random.Generator) -> Image.Image:
    """Apply light, blur and noise, and reduce the picture to its size."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    light = 1 + variation.light * (np.cos(angle) * x + np.sin(angle) * y - rng.uniform(0, 0.5))
    blurred = picture.filter(ImageFilter.GaussianBlur(variation.blur * picture.width))
    pixels: Pixels = np.asarray(blurred.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    pixels = pixels * light[..., None].astype(np.float32) + rng.normal(0, 1, pixels.shape) * variation.noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
