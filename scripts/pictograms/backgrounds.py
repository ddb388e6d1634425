"""Backgrounds of symbols: plain, gradient, noise, pattern, scene, shapes; arrays (size, size, 3) from 0 to 255."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pictograms.colours import mixed, random_colour
from pictograms.symbols import Colour

Pixels = NDArray[np.float32]
GREY: Colour = (110, 110, 105)


def background(kind: str, ground: Colour, size: int, rng: np.random.Generator) -> Pixels:
    """Draw a background of a kind in colours near `ground`; a scene has its own colours."""
    return KINDS[kind](ground, size, rng)


def plain(ground: Colour, size: int, _rng: np.random.Generator) -> Pixels:
    """Fill with one colour."""
    return np.full((size, size, 3), ground, dtype=np.float32)


def gradient(ground: Colour, size: int, rng: np.random.Generator) -> Pixels:
    """Blend to another colour, along a line or outwards from a point."""
    other = mixed(ground, random_colour(rng), rng.uniform(0.35, 0.8))
    y, x = _grid(size)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        share = 0.5 + (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)) / 1.2
    else:
        share = np.hypot(x - rng.random(), y - rng.random())
    return _blend(ground, other, np.clip(share, 0, 1))


def grain(ground: Colour, size: int, rng: np.random.Generator) -> Pixels:
    """Add noise, from fine to coarse, grey or coloured."""
    cells = max(2, round(size / rng.uniform(2, 14)))
    noise = rng.normal(0, rng.uniform(10, 32), (cells, cells, int(rng.choice([1, 3]))))
    return np.clip(plain(ground, size, rng) + _enlarged(noise, size), 0, 255)


def pattern(ground: Colour, size: int, rng: np.random.Generator) -> Pixels:
    """Draw rotated stripes, checks, dots or waves of two colours."""
    other = mixed(ground, random_colour(rng), rng.uniform(0.15, 0.5))
    y, x = _grid(size)
    angle, waves = rng.uniform(0, np.pi), rng.uniform(3, 14)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    a, b = (np.sin(2 * np.pi * waves * length + rng.uniform(0, 6)) for length in (along, across))
    share = {
        "stripes": a,
        "checks": a * b,
        "dots": a + b - 0.8,
        "waves": np.sin(2 * np.pi * waves * along + 2.5 * np.sin(2 * np.pi * across * rng.uniform(0.5, 2))),
    }[str(rng.choice(["stripes", "checks", "dots", "waves"]))]
    # A random steepness gives hard or soft edges.
    return _blend(ground, other, 1 / (1 + np.exp(-share * rng.uniform(2, 30))))


def scene(_ground: Colour, size: int, rng: np.random.Generator) -> Pixels:
    """Imitate an out-of-focus photograph: curved surfaces of a few colours, with texture and lights."""
    muted = rng.uniform(0.2, 0.7)
    palette = np.array([mixed(random_colour(rng), GREY, muted) for _ in range(3)], dtype=np.float32)
    heights = np.stack([_fractal(size, rng) for _ in palette]) * rng.uniform(3, 12)
    shares = np.exp(heights - heights.max(axis=0))
    pixels = np.einsum("kyx,kc->yxc", shares / shares.sum(axis=0), palette)
    pixels *= 1 + 0.35 * _fractal(size, rng, roughness=0.75)[..., None]
    if rng.random() < 0.5:
        pixels = _with_lights(pixels, rng)
    return np.clip(pixels, 0, 255)


def clutter(ground: Colour, size: int, rng: np.random.Generator) -> Pixels:
    """Draw overlapping shapes of random colours."""
    picture = Image.new("RGB", (size, size), ground)
    drawing = ImageDraw.Draw(picture)
    for _ in range(rng.integers(14, 30)):
        x, y = rng.uniform(-0.1, 1.1, 2) * size
        radius, fill = rng.uniform(0.05, 0.22) * size, random_colour(rng)
        match rng.integers(4):
            case 0:
                drawing.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
            case 1:
                drawing.regular_polygon((x, y, radius), int(rng.integers(3, 7)), rng.uniform(0, 360), fill=fill)
            case 2:
                end = rng.uniform(0, 1, 2) * size
                drawing.line((x, y, *end), fill=fill, width=max(1, round(rng.uniform(0.01, 0.05) * size)))
            case _:
                start, end = rng.uniform(0, 360, 2)
                drawing.arc((x - radius, y - radius, x + radius, y + radius), start, end, fill=fill, width=4)
    return np.asarray(picture, dtype=np.float32)


KINDS = {
    "plain": plain,
    "gradient": gradient,
    "grain": grain,
    "pattern": pattern,
    "scene": scene,
    "clutter": clutter,
}


def _grid(size: int) -> tuple[Pixels, Pixels]:
    """Return y and x of each pixel, 0 to 1."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    return y, x


def _blend(colour: Colour, other: Colour, share: NDArray[Any]) -> Pixels:
    start, end = np.array(colour, dtype=np.float32), np.array(other, dtype=np.float32)
    return start + (end - start) * share[..., None].astype(np.float32)


def _fractal(size: int, rng: np.random.Generator, roughness: float = 0.45) -> Pixels:
    """Return fractal noise `(size, size)` of about -1 to 1; `roughness` is the weight of each finer scale."""
    total = np.zeros((size, size), dtype=np.float32)
    weight, cells = 1.0, 3
    while cells < size / 2:
        total += weight * _enlarged(rng.uniform(-1, 1, (cells, cells)), size)
        weight, cells = weight * roughness, cells * 2
    return total


def _enlarged(noise: NDArray[Any], size: int) -> Pixels:
    """Resize `(cells, cells)` or `(cells, cells, channels)` to the size of the picture, with bicubic interpolation."""
    if noise.ndim == 3:
        return np.stack([_enlarged(channel, size) for channel in np.moveaxis(noise, -1, 0)], axis=-1)
    return np.asarray(Image.fromarray(noise.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))


def _with_lights(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Add round out-of-focus lights."""
    size = len(pixels)
    lights = Image.new("RGB", (size, size))
    drawing = ImageDraw.Draw(lights)
    for _ in range(rng.integers(3, 14)):
        x, y = rng.uniform(0, size, 2)
        radius = rng.uniform(0.02, 0.12) * size
        colour = mixed(random_colour(rng), (0, 0, 0), rng.uniform(0.2, 0.7))
        drawing.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return pixels + np.asarray(lights.filter(ImageFilter.GaussianBlur(size / 90)), dtype=np.float32)
