"""Random variation of the pictures, within the training ranges or beyond them."""

from dataclasses import dataclass, replace

import numpy as np

SCHEMES = ("own", "inverse", "random")
BACKGROUNDS = ("plain", "gradient", "grain", "pattern", "scene")
# Properties beyond the training ranges; a test picture has at most one, which is part of its file name.
BEYOND = ("turned", "small", "tilted", "covered", "coarse", "blurred", "cluttered")


@dataclass(frozen=True)
class Variation:
    """Settings of one picture; lengths are shares of the picture's side.

    Attributes:
        scale: geometric mean of the symbol's two sides.
        angle: rotation in degrees.
        tilt: maximum displacement of the corners, as a share of the symbol.
        x: horizontal position, -1 to 1.
        y: vertical position, -1 to 1.
        scheme: colour scheme.
        background: kind of background.
        badge: whether the symbol is on a plate.
        shadow: whether it has a shadow.
        covered: hidden share of the symbol.
        light: difference in brightness between two sides.
        blur: radius.
        noise: standard deviation, on a scale of 0 to 255.
        quality: JPEG quality.
    """

    scale: float
    angle: float
    tilt: float
    x: float
    y: float
    scheme: str
    background: str
    badge: bool
    shadow: bool
    covered: float
    light: float
    blur: float
    noise: float
    quality: int


def draw(rng: np.random.Generator, beyond: str | None = None) -> Variation:
    """Draw a variation within the training ranges; the property `beyond` lies outside of them."""
    variation = Variation(
        scale=rng.uniform(0.4, 0.9),
        angle=rng.uniform(-20, 20),
        tilt=rng.uniform(0, 0.08),
        x=rng.uniform(-1, 1),
        y=rng.uniform(-1, 1),
        scheme=str(rng.choice(SCHEMES)),
        background=str(rng.choice(BACKGROUNDS)),
        badge=rng.random() < 0.25,
        shadow=rng.random() < 0.25,
        covered=rng.uniform(0.03, 0.15) if rng.random() < 0.3 else 0.0,
        light=rng.uniform(0, 0.5),
        blur=rng.uniform(0, 0.012),
        noise=rng.uniform(0, 10) if rng.random() < 0.5 else 0.0,
        quality=int(rng.integers(35, 96)),
    )
    return _beyond_training(variation, beyond, rng) if beyond else variation


def _beyond_training(variation: Variation, beyond: str, rng: np.random.Generator) -> Variation:
    match beyond:
        case "turned":
            return replace(variation, angle=rng.choice([-1, 1]) * rng.uniform(25, 45))
        case "small":
            return replace(variation, scale=rng.uniform(0.27, 0.37))
        case "tilted":
            return replace(variation, tilt=rng.uniform(0.16, 0.26))
        case "covered":
            return replace(variation, covered=rng.uniform(0.2, 0.35))
        case "coarse":
            return replace(variation, quality=int(rng.integers(8, 21)), noise=rng.uniform(10, 20))
        case "blurred":
            return replace(variation, blur=rng.uniform(0.018, 0.025), scale=rng.uniform(0.55, 0.9))
        case "cluttered":
            return replace(variation, background="clutter")
    raise ValueError(f"{beyond} is not one of {', '.join(BEYOND)}")
