"""What differs from picture to picture, and in which ranges: those of training, and beyond them."""

from dataclasses import dataclass, replace

import numpy as np

SCHEMES = ("own", "inverse", "random")
BACKGROUNDS = ("plain", "gradient", "grain", "pattern", "scene")
# What only test pictures have, one each: its name is in the name of their files.
BEYOND = ("turned", "small", "tilted", "covered", "coarse", "blurred", "cluttered")


@dataclass(frozen=True)
class Variation:
    """How one picture is made of a symbol; lengths are shares of the picture's side.

    scale: the geometric mean of the symbol's two sides. angle: degrees. tilt: how far its corners may lie from a
    square's, a share of the symbol. x, y: -1 to 1, how far it is moved within the room that it leaves. scheme,
    background, badge: what it is painted in, what is behind, and whether a plate is between the two. shadow: whether it
    throws one. covered: the share of it that something hides. light: how much brighter one side is than the other.
    blur: radius. noise: standard deviation, of 255. quality: of the JPEG file.
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
    """One of the training's ranges; one thing out of them where `beyond` names it."""
    drawn = Variation(
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
    return _taken_beyond(drawn, beyond, rng) if beyond else drawn


def _taken_beyond(drawn: Variation, beyond: str, rng: np.random.Generator) -> Variation:
    match beyond:
        case "turned":
            return replace(drawn, angle=rng.choice([-1, 1]) * rng.uniform(25, 45))
        case "small":
            return replace(drawn, scale=rng.uniform(0.27, 0.37))
        case "tilted":
            return replace(drawn, tilt=rng.uniform(0.16, 0.26))
        case "covered":
            return replace(drawn, covered=rng.uniform(0.2, 0.35))
        case "coarse":
            return replace(drawn, quality=int(rng.integers(8, 21)), noise=rng.uniform(10, 20))
        case "blurred":
            return replace(drawn, blur=rng.uniform(0.018, 0.025), scale=rng.uniform(0.55, 0.9))
        case "cluttered":
            return replace(drawn, background="clutter")
    raise ValueError(f"{beyond} is none of {', '.join(BEYOND)}")
