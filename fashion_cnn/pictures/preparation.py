"""Convert a picture of any kind to the tensor that a network was trained on; every command uses this conversion.

The images of Fashion-MNIST are product photographs on white that were trimmed to the item, shrunk until the longer
side was 28 pixels, sharpened, centred, negated and converted to grey (Xiao et al., 2017, arXiv 1708.07747, section 2).
The item touches the frame, its background is 0, a pixel is brighter the more it differs from that background, and the
brightest is 255. Photographs are converted in the same way here.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from fashion_cnn.errors import UserError
from fashion_cnn.pictures.colour import foreground, separate_items, to_lab

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

Invert = Literal["auto", "never", "always"]
# This version is increased when decoding or preparation changes, which invalidates caches and catalogues.
PREPARATION_VERSION = 3
# The item of a photograph is found on a copy whose longer side has this number of pixels.
_ITEM_SIDE = 112
# Background that is kept around the item, as a share of its longer side.
_ITEM_MARGIN = 0.1
# Length of the longer side of a thumbnail in pixels.
THUMBNAIL_SIDE = 192
# Minimum width and height of a box, as shares of those of the picture.
_MIN_BOX_SIDE = 0.01
# Maximum number of pixels that a picture is decoded to for a box in it.
_MAX_BOX_PIXELS = 4_000_000


@dataclass(frozen=True)
class Box:
    """A part of a picture.

    Attributes:
        left: distance to the left edge of the picture, as a share of its width.
        top: distance to the upper edge, as a share of its height.
        right: the right end, as a share of the width.
        bottom: the lower end, as a share of the height.
    """

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Share of the picture's area."""
        return (self.right - self.left) * (self.bottom - self.top)

    def __str__(self) -> str:
        """Write the box as `parse_box` takes it, with commas."""
        return ",".join(f"{side:.4g}" for side in (self.left, self.top, self.right, self.bottom))

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the box in a picture of this width and height; it has at least one pixel."""
        spans = []
        for start, end, length in zip((self.left, self.top), (self.right, self.bottom), size, strict=True):
            first = min(round(start * length), length - 1)
            spans.append((first, max(first + 1, round(end * length))))
        (left, right), (top, bottom) = spans
        return left, top, right, bottom


def parse_box(values: Sequence[object]) -> Box:
    """Parse a box.

    Args:
        values: left, top, right and bottom from 0 to 1; numbers or their texts.

    Raises:
        UserError: if they are no box, or one that is too small.
    """
    try:
        left, top, right, bottom = (float(str(value)) for value in values)
    except ValueError:
        left = top = right = bottom = math.nan
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        given = ",".join(str(value) for value in values)
        raise UserError(
            f"box={given:.80} is not LEFT,TOP,RIGHT,BOTTOM in shares of the picture: such as 0.2,0,0.75,1.", status=2
        )
    # Rounding errors of the differences are no reason to refuse a box.
    if min(right - left, bottom - top) < _MIN_BOX_SIDE - 1e-9:
        raise UserError(
            f"The box {left:g},{top:g},{right:g},{bottom:g} is too small: give 0.01 or more a side.", status=2
        )
    return Box(left, top, right, bottom)


@dataclass(frozen=True)
class Preparation:
    """Converts a picture of mode L, LA, RGB or RGBA, as `decode` returns it, to a uint8 tensor of `image_shape`.

    Attributes:
        image_shape: `(C, H, W)` of the network; 1 channel is grey, 3 are red, green and blue.
        cut_out: whether the network was trained on items cut out as those of Fashion-MNIST are. If not, the whole
            picture is fitted into the frame with its colours unchanged.
        photograph: whether the network was trained on photographs. An item on a plain or evenly shaded background is
            trimmed, with a margin; of any other scene the middle square is taken, or all of a box.
        trim: whether items of photographs are trimmed; if not, the middle square is taken of them too.
        invert: `auto` measures the difference of each pixel to the background, light or dark; `never` keeps the
            pixels, `always` negates them.
        background: the grey behind transparent pixels, 0 to 255; a light item that is cut out gets black instead.
        tolerance: the largest difference of a background pixel to the background in any channel, as a fraction of 255.
        sharpening: percent of an unsharp mask of radius 1, applied if the picture was shrunk. 70 gives outlines as
            steep as in the training images: the outermost pixel of an item has 0.7 of its intensity, the next one 1.1.
    """

    image_shape: tuple[int, int, int]
    cut_out: bool = True
    photograph: bool = False
    trim: bool = True
    invert: Invert = "auto"
    background: int = 255
    tolerance: float = 0.08
    sharpening: int = 70

    @property
    def min_pixels(self) -> int:
        """Pixels that a decoded picture needs: 256 per pixel of the network's input, since the item may be small.

        Networks of photographs have larger inputs, and take 16.
        """
        return (16 if self.photograph else 256) * self.image_shape[1] * self.image_shape[2]

    def min_pixels_for(self, box: Box | None) -> int:
        """Return the pixels that a decoded picture needs for `min_pixels` of them in a box, within limits."""
        if box is None:
            return self.min_pixels
        return max(self.min_pixels, min(math.ceil(self.min_pixels / box.area), _MAX_BOX_PIXELS))

    def __call__(self, picture: Image.Image, box: Box | None = None) -> Tensor:
        """Convert a picture.

        Args:
            picture: as `decode` returns it. One that has the network's size already keeps its frame and its pixels.
            box: the part of the picture that counts; None for the whole.

        Returns:
            The picture as `(C, H, W)` uint8.
        """
        # Imported here: the process that decodes untrusted pictures does not need torch.
        import torch

        return torch.from_numpy(self.array(picture, box))

    def array(self, picture: Image.Image, box: Box | None = None) -> NDArray[np.uint8]:
        """Convert a picture as `__call__` does, to a NumPy array `(C, H, W)` uint8."""
        picture = self.flatten(picture)
        if box is not None:
            picture = picture.crop(box.pixels(picture.size))
        if self.photograph:
            return self._photograph(picture.convert("RGB"), keep_all=box is not None)
        if picture.size == self._size and box is None:
            picture = self._in_channels(picture)
            return _array(ImageOps.invert(picture) if self._is_negative(picture) else picture)
        return self._item(picture) if self.cut_out else self._whole(picture)

    def find_items(self, picture: Image.Image) -> list[Box]:
        """Find several items in a photograph, each of which can be prepared alone.

        Args:
            picture: as `decode` returns it.

        Returns:
            The parts with the items, the largest first; empty unless at least two stand out from a plain or evenly
            shaded background, and for networks of other pictures than photographs.
        """
        if not self.photograph:
            return []
        small = _small_copy(self.flatten(picture).convert("RGB"))
        sides = (small.width, small.height) * 2
        return [
            Box(*(place / side for place, side in zip(box, sides, strict=True)))
            for box in separate_items(to_lab(np.asarray(small)))
        ]

    def flatten(self, picture: Image.Image) -> Image.Image:
        """Return the picture in mode L or RGB, with the background in place of transparency."""
        if picture.mode in ("L", "RGB"):
            return picture
        alpha, picture = picture.getchannel("A"), picture.convert(picture.mode.removesuffix("A"))
        grey = 0 if self.cut_out and _is_light(picture, alpha) else self.background
        flat = Image.new("L", picture.size, grey).convert(picture.mode)
        flat.paste(picture, mask=alpha)
        return flat

    @property
    def _size(self) -> tuple[int, int]:
        return self.image_shape[2], self.image_shape[1]

    @property
    def _limit(self) -> int:
        return round(self.tolerance * 255)

    def _in_channels(self, picture: Image.Image) -> Image.Image:
        return picture.convert("L" if self.image_shape[0] == 1 else "RGB")

    def _is_negative(self, picture: Image.Image) -> bool:
        """Return whether to negate a picture of the network's size; `auto` does for a clearly light background."""
        if self.invert != "auto" or not self.cut_out:
            return self.invert == "always"
        # In none of the 70,000 images of Fashion-MNIST is as much of the border brighter than 16.
        return bool((_border(picture.convert("L")) > 127).mean() >= 0.75)

    def _whole(self, picture: Image.Image) -> NDArray[np.uint8]:
        background = _background(picture)
        framed = self._framed(self._in_channels(picture), self._in_channels(background))
        return _array(ImageOps.invert(framed) if self.invert == "always" else framed)

    def _photograph(self, picture: Image.Image, *, keep_all: bool) -> NDArray[np.uint8]:
        """Return the item on a plain background; of another picture the middle square, or all of it, padded."""
        box = item_box(picture) if self.trim else None
        if box is None and keep_all:
            box = (0, 0, *picture.size)
        if box is None:
            return _array(ImageOps.fit(picture, self._size, Image.Resampling.BICUBIC))
        # The median of the border, since the corners of a shaded background differ.
        background = tuple(np.median(_border(picture, channels=3), axis=0).astype(int).tolist())
        return _array(ImageOps.pad(picture.crop(box), self._size, Image.Resampling.BICUBIC, color=background))

    def _item(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Return the item as its difference to the background; a scene without a plain background is kept whole."""
        picture, background = self._trimmed(picture)
        if self.invert == "auto" and background:
            picture = ImageChops.difference(picture, background.resize(picture.size))
        elif self.invert == "always" or (self.invert == "auto" and np.median(_border(picture)) > 127):
            picture = ImageOps.invert(picture)
            background = background and ImageOps.invert(background)
        black = Image.new(picture.mode, (1, 1))
        framed = self._framed(picture, black if self.invert == "auto" else background or black)
        if max(picture.size) > max(framed.size):
            framed = framed.filter(ImageFilter.UnsharpMask(radius=1, percent=self.sharpening, threshold=0))
        pixels = _array(framed)
        brightest = np.float32(pixels.max())
        # Without an item, the noise of the background is not amplified.
        if brightest <= self._limit:
            return pixels
        return (pixels.astype(np.float32) * (np.float32(255) / brightest)).round().astype(np.uint8)

    def _trimmed(self, picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
        """Return the item on a plain background and one pixel of that background, or the whole picture and None."""
        # A smaller copy averages the noise of a camera.
        factor = max(1, min(picture.size) // (8 * min(self._size)))
        small = picture.reduce(factor)
        background = _background(small)
        foreground = self._foreground(small, background)
        if (_border(foreground) > 0).mean() > 0.5:
            return self._in_channels(picture), None
        if box := foreground.getbbox():
            left, top, right, bottom = (side * factor for side in box)
            picture = picture.crop((left, top, min(right, picture.width), min(bottom, picture.height)))
        return self._in_channels(picture), self._in_channels(background)

    def _foreground(self, picture: Image.Image, background: Image.Image) -> Image.Image:
        """Return a mask of mode L: 255 where a pixel differs from the background, else 0."""
        difference, limit = ImageChops.difference(picture, background.resize(picture.size)), self._limit
        return _largest_channel(difference).point([255 * (value > limit) for value in range(256)])

    def _framed(self, picture: Image.Image, background: Image.Image) -> Image.Image:
        """Fit the picture into the middle of the frame, with background on the sides."""
        scale = min(frame / side for frame, side in zip(self._size, picture.size, strict=True))
        width, height = (max(1, round(side * scale)) for side in picture.size)
        resized = picture.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
        framed = background.resize(self._size)
        # An odd pixel goes to the left and the top, as in Fashion-MNIST.
        framed.paste(resized, ((framed.width - width + 1) // 2, (framed.height - height + 1) // 2))
        return framed


def _is_light(picture: Image.Image, alpha: Image.Image) -> bool:
    """Return whether an item on a transparent background is so light that it would vanish on white."""
    if (_border(alpha) < 128).mean() <= 0.5:
        return False
    item = np.asarray(picture.convert("L"))[np.asarray(alpha) >= 128]
    return bool(item.size and item.mean() >= 192)


def _background(picture: Image.Image) -> Image.Image:
    """Return one pixel of the background colour, the median of the corners in each channel."""
    side = max(1, min(picture.size) // 28)
    width, height = picture.size
    corners = [
        np.asarray(picture.crop((left, top, left + side, top + side))).reshape(side * side, -1)
        for left in (0, width - side)
        for top in (0, height - side)
    ]
    colour = np.median(np.concatenate(corners), axis=0).round().astype(np.uint8)
    return Image.fromarray(colour.reshape((1, 1) if picture.mode == "L" else (1, 1, 3)))


def encode_thumbnail(picture: Image.Image) -> bytes:
    """Shrink a picture to `THUMBNAIL_SIDE` and encode it as JPEG, or as WebP if it has transparency."""
    small = picture.copy()
    # A first reduction by an integer factor halves the time.
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=1.0)
    buffer = io.BytesIO()
    if small.mode in ("L", "RGB"):
        # JPEG files are 1.5 times as large as WebP, but encode 15 times as fast.
        small.save(buffer, "JPEG", quality=85)
    else:
        small.save(buffer, "WEBP", quality=80, method=2)
    return buffer.getvalue()


def item_box(picture: Image.Image) -> tuple[int, int, int, int] | None:
    """Find the box of the item in a photograph of mode RGB, with a margin; None unless the background is plain."""
    small = _small_copy(picture)
    mask = foreground(to_lab(np.asarray(small)))
    if mask is None:
        return None
    scales = (picture.width / small.width, picture.height / small.height)
    spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1)]
    sides = [(span[0] * scale, (span[-1] + 1) * scale) for span, scale in zip(spans, scales, strict=True)]
    margin = _ITEM_MARGIN * max(end - start for start, end in sides)
    (left, right), (top, bottom) = (
        (max(0, round(start - margin)), min(length, round(end + margin)))
        for (start, end), length in zip(sides, picture.size, strict=True)
    )
    return left, top, right, bottom


def _small_copy(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((_ITEM_SIDE, _ITEM_SIDE), reducing_gap=2.0)
    return small


def _border(picture: Image.Image, *, channels: int = 1) -> NDArray[np.uint8]:
    """Return the values of the pixels on the four edges: `(P,)`, or `(P, channels)` for several channels."""
    width, height = picture.size
    edges = [(0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)]
    values = np.concatenate([np.asarray(picture.crop(edge)).ravel() for edge in edges])
    return values if channels == 1 else values.reshape(-1, channels)


def _largest_channel(picture: Image.Image) -> Image.Image:
    largest, *others = picture.split()
    for channel in others:
        largest = ImageChops.lighter(largest, channel)
    return largest


def _array(picture: Image.Image) -> NDArray[np.uint8]:
    pixels = np.array(picture)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
