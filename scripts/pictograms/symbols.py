"""Symbols, that is logos and drawings, cropped to their edges."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Symbol:
    """A symbol.

    Attributes:
        picture: square RGBA picture, whose longer side the drawing fills.
        colour: characteristic colour, if there is one.
        one_colour: whether the drawing may be painted in any colour.
    """

    picture: Image.Image
    colour: Colour | None
    one_colour: bool

    @property
    def elongation(self) -> float:
        """Ratio of the longer to the shorter side."""
        left, top, right, bottom = self.mask.getbbox() or (0, 0, 1, 1)
        short, long = sorted((right - left, bottom - top))
        return long / short

    @property
    def mask(self) -> Image.Image:
        """Alpha channel, 0 to 255."""
        return self.picture.getchannel("A")


def cut_out(drawn: Image.Image, *, colour: Colour | None = None, one_colour: bool) -> Symbol | None:
    """Crop a symbol from an RGBA picture; returns None for an empty picture.

    The characteristic colour of a symbol with several colours is their mean.
    """
    box = drawn.getchannel("A").getbbox()
    if box is None:
        return None
    cut = drawn.crop(box)
    square = Image.new("RGBA", (max(cut.size),) * 2)
    square.paste(cut, ((square.width - cut.width) // 2, (square.height - cut.height) // 2))
    return Symbol(square, colour if one_colour else _mean_colour(square), one_colour)


def _mean_colour(picture: Image.Image) -> Colour:
    pixels = np.asarray(picture, dtype=np.float64).reshape(-1, 4)
    red, green, blue = np.average(pixels[:, :3], axis=0, weights=pixels[:, 3])
    return round(red), round(green), round(blue)
