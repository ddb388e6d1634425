"""Characters of a font as symbols, in one or several colours."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fashion_cnn.errors import UserError
from pictograms.symbols import Symbol, cut_out

DRAWN_SIZE = 320
# The only size of bitmap fonts with coloured pictures of 136 x 128 pixels.
BITMAP_SIZE = 109
# Not a character: shows what the font draws for missing characters.
NO_CHARACTER = "\U0010ffff"


@dataclass(frozen=True)
class Glyph:
    """A character of a font file."""

    font: Path
    character: str

    def symbol(self) -> Symbol:
        """Draw the symbol. Raises UserError if the font is unreadable or lacks the character."""
        drawn = _drawn(self.font, self.character)
        symbol = cut_out(drawn, one_colour=_is_of_one_colour(drawn))
        if symbol is None:
            raise UserError(f"{self.font} has no drawing for U+{ord(self.character):04X}.")
        return symbol


def has(font: Path, character: str) -> bool:
    """Return whether the font has the character. Raises UserError if the font is unreadable."""
    drawn = _drawn(font, character)
    return drawn.getbbox() is not None and drawn.tobytes() != _drawn(font, NO_CHARACTER).tobytes()


def _drawn(file: Path, character: str) -> Image.Image:
    font = _font(file)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(character))
    picture = Image.new("RGBA", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(picture).text((-left, -top), character, fill=(0, 0, 0, 255), font=font, embedded_color=True)
    return picture


@cache
def _font(file: Path) -> ImageFont.FreeTypeFont:
    for size in (DRAWN_SIZE, BITMAP_SIZE):
        try:
            return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            reason = error
    raise UserError(f"{file} is not a readable font: {reason}")


def _is_of_one_colour(drawn: Image.Image) -> bool:
    return not np.asarray(drawn)[..., :3].any()
