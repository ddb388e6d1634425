"""What is drawn on a picture: a logo or a drawing, cut to its edges."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Symbol:
    """picture: RGBA, square, the drawing reaching two of its edges at least. colour: the one it is known by, if any.

    one_colour: only its shape counts, so that it may be painted in any colour.
    """

    picture: Image.Image
    colour: Colour | None
    one_colour: bool

    @property
    def elongation(self) -> float:
        """The longer side by the shorter one."""
        left, top, right, bottom = self.mask.getbbox() or (0, 0, 1, 1)
        short, long = sorted((right - left, bottom - top))
        return long / short

    @property
    def mask(self) -> Image.Image:
        """Where it is, 0 to 255."""
        return self.picture.getchannel("A")


def cut_out(drawn: Image.Image, *, colour: Colour | None = None, one_colour: bool) -> Symbol | None:
    """The symbol on an RGBA picture; None where nothing is drawn.

    Without a `colour`, one of many colours is known by its mean.
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
