"""Ink and ground: the colours of a symbol and of what it is on, always so far apart that a person sees the symbol."""

import colorsys

import numpy as np

from pictograms.symbols import Colour

WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)


def pair(scheme: str, known_by: Colour | None, rng: np.random.Generator) -> tuple[Colour, Colour]:
    """(ink, ground) of a scheme: `own` colour on a pale or dark ground, `inverse` on its own colour, or `random`."""
    own = known_by or random_colour(rng)
    if scheme == "own":
        return own, mixed(random_colour(rng), WHITE if luminance(own) < 0.4 else BLACK, rng.uniform(0.7, 1))
    if scheme == "inverse":
        return WHITE if luminance(own) < 0.4 else BLACK, own
    return random_colour(rng), random_colour(rng)


def random_colour(rng: np.random.Generator) -> Colour:
    """Of any hue; from grey to full, from dark to light."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.random() ** 0.7, rng.uniform(0.1, 1))
    return round(red * 255), round(green * 255), round(blue * 255)


def readable(ink: Colour, ground: Colour, contrast: float) -> Colour:
    """The ink, as much lighter or darker as it must be to stand out from the ground with that contrast, if any can."""
    towards = WHITE if contrast_of(WHITE, ground) > contrast_of(BLACK, ground) else BLACK
    shades = [mixed(ink, towards, share) for share in (0, 0.25, 0.5, 0.75, 1)]
    return next((shade for shade in shades if contrast_of(shade, ground) >= contrast), towards)


def negative(colour: Colour) -> Colour:
    """Light for dark, and the opposite hue."""
    red, green, blue = (255 - part for part in colour)
    return red, green, blue


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of the other colour, the rest of the one."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def contrast_of(one: Colour, other: Colour) -> float:
    """Contrast ratio, 1 to 21 (WCAG 2.2)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: Colour) -> float:
    """Relative luminance, 0 to 1 (WCAG 2.2)."""
    linear = [((part / 255 + 0.055) / 1.055) ** 2.4 if part > 10 else part / 255 / 12.92 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
