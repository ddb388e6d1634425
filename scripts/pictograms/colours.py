"""Colours of a symbol (ink) and of its background (ground), with enough contrast between them."""

import colorsys

import numpy as np

from pictograms.symbols import Colour

WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)


def pair(scheme: str, known_by: Colour | None, rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Draw (ink, ground) for a scheme: `own` colour as ink, `inverse` own colour as ground, or `random`."""
    own = known_by or random_colour(rng)
    if scheme == "own":
        return own, mixed(random_colour(rng), WHITE if luminance(own) < 0.4 else BLACK, rng.uniform(0.7, 1))
    if scheme == "inverse":
        return WHITE if luminance(own) < 0.4 else BLACK, own
    return random_colour(rng), random_colour(rng)


def random_colour(rng: np.random.Generator) -> Colour:
    """Draw a colour of any hue, saturation and brightness."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.random() ** 0.7, rng.uniform(0.1, 1))
    return round(red * 255), round(green * 255), round(blue * 255)


def readable(ink: Colour, ground: Colour, contrast: float) -> Colour:
    """Lighten or darken the ink until it has this contrast to the ground, or as much as possible."""
    towards = WHITE if contrast_of(WHITE, ground) > contrast_of(BLACK, ground) else BLACK
    shades = [mixed(ink, towards, share) for share in (0, 0.25, 0.5, 0.75, 1)]
    return next((shade for shade in shades if contrast_of(shade, ground) >= contrast), towards)


def negative(colour: Colour) -> Colour:
    """Invert a colour."""
    red, green, blue = (255 - part for part in colour)
    return red, green, blue


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """Mix two colours, with `share` of the other one."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def contrast_of(colour: Colour, other: Colour) -> float:
    """Return the contrast ratio, 1 to 21 (WCAG 2.2)."""
    dark, light = sorted((luminance(colour), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: Colour) -> float:
    """Return the relative luminance, 0 to 1 (WCAG 2.2)."""
    linear = [((part / 255 + 0.055) / 1.055) ** 2.4 if part > 10 else part / 255 / 12.92 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
