"""From a picture of any kind to what a network was trained on: the one way there, for every command.

The images of Fashion-MNIST are product photographs on white that were trimmed to the item, shrunk until the longer
side was 28 pixels, sharpened, centred, negated and made grey (Xiao et al., 2017, arXiv 1708.07747, section 2). So the
item touches the frame, its ground is 0, a pixel is the brighter the further it is from that ground, and the brightest
is 255. A photograph is taken the same way here.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter, ImageOps
from torch import Tensor

Invert = Literal["auto", "never", "always"]
# Raised where pictures are decoded or prepared in another way than before: what was kept of them is made anew.
PREPARATION_VERSION = 2


@dataclass(frozen=True)
class Preparation:
    """Brings a picture of mode L, LA, RGB or RGBA, as `decode` gives it, to a uint8 tensor of `image_shape`.

    image_shape: `(C, H, W)` of the network; 1 channel is grey, 3 are red, green and blue.
    cut_out: whether the network was trained on items cut out as those of Fashion-MNIST are. If not, the whole picture
        is fitted into the frame, its colours as they are.
    invert: `auto` takes how far a pixel is from the ground that the item lies on, be that light or dark; `never` takes
        pixels as they are, `always` negated.
    background: the grey behind transparent pixels, 0 to 255; black behind an item that is cut out and light.
    tolerance: how far a pixel may be from the ground, in any channel, and still belong to it, as a share of 255.
    sharpening: percent of an unsharp mask of radius 1, where the picture was shrunk. 70 gives outlines as steep as in
        the training images: the outermost pixel of an item has 0.7 of its intensity, the next one 1.1.
    """

    image_shape: tuple[int, int, int]
    cut_out: bool = True
    invert: Invert = "auto"
    background: int = 255
    tolerance: float = 0.08
    sharpening: int = 70

    @property
    def enough(self) -> int:
        """The pixels that do: 256 for each that the network sees, so that the item may be small among them."""
        return 256 * self.image_shape[1] * self.image_shape[2]

    def __call__(self, picture: Image.Image) -> Tensor:
        """The picture as `(C, H, W)` uint8. One that has the size already keeps its frame and its pixels."""
        picture = self.flattened(picture)
        if picture.size == self._size:
            picture = self._in_channels(picture)
            return _tensor(ImageOps.invert(picture) if self._is_negative(picture) else picture)
        return self._item(picture) if self.cut_out else self._whole(picture)

    def flattened(self, picture: Image.Image) -> Image.Image:
        """Mode L or RGB, as large: what is transparent shows the ground that the network sees there."""
        if picture.mode in ("L", "RGB"):
            return picture
        alpha, picture = picture.getchannel("A"), picture.convert(picture.mode.removesuffix("A"))
        ground = 0 if self.cut_out and _is_light(picture, alpha) else self.background
        flat = Image.new("L", picture.size, ground).convert(picture.mode)
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
        """Whether a picture of the network's size is to be negated: where it clearly lies on light ground."""
        if self.invert != "auto" or not self.cut_out:
            return self.invert == "always"
        # In none of the 70,000 images of Fashion-MNIST is so much of the border brighter than 16.
        return bool((_border(picture.convert("L")) > 127).mean() >= 0.75)

    def _whole(self, picture: Image.Image) -> Tensor:
        ground = _ground(picture)
        framed = self._framed(self._in_channels(picture), self._in_channels(ground))
        return _tensor(ImageOps.invert(framed) if self.invert == "always" else framed)

    def _item(self, picture: Image.Image) -> Tensor:
        """The item alone, as a contrast to its ground; a scene without a plain ground whole."""
        picture, ground = self._trimmed(picture)
        if self.invert == "auto" and ground:
            picture = ImageChops.difference(picture, ground.resize(picture.size))
        elif self.invert == "always" or (self.invert == "auto" and np.median(_border(picture)) > 127):
            picture = ImageOps.invert(picture)
            ground = ground and ImageOps.invert(ground)
        black = Image.new(picture.mode, (1, 1))
        framed = self._framed(picture, black if self.invert == "auto" else ground or black)
        if max(picture.size) > max(framed.size):
            framed = framed.filter(ImageFilter.UnsharpMask(radius=1, percent=self.sharpening, threshold=0))
        pixels = _tensor(framed)
        # Where nothing lies on the ground, its noise stays what it is.
        return (pixels * (255 / pixels.max())).round().byte() if pixels.max() > self._limit else pixels

    def _trimmed(self, picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
        """What lies on a plain ground, and a pixel of that ground; or the whole picture, where it has none."""
        # Looked for in a smaller copy, whose pixels average the noise of a camera.
        shrunk_by = max(1, min(picture.size) // (8 * min(self._size)))
        small = picture.reduce(shrunk_by)
        ground = _ground(small)
        differs = self._differs(small, ground)
        if (_border(differs) > 0).mean() > 0.5:
            return self._in_channels(picture), None
        if box := differs.getbbox():
            left, top, right, bottom = (side * shrunk_by for side in box)
            picture = picture.crop((left, top, min(right, picture.width), min(bottom, picture.height)))
        return self._in_channels(picture), self._in_channels(ground)

    def _differs(self, picture: Image.Image, ground: Image.Image) -> Image.Image:
        """Mode L: 255 where a pixel is no ground, else 0."""
        distance, limit = ImageChops.difference(picture, ground.resize(picture.size)), self._limit
        return _largest_channel(distance).point([255 * (value > limit) for value in range(256)])

    def _framed(self, picture: Image.Image, ground: Image.Image) -> Image.Image:
        """The picture as large as the frame allows, in its middle, with ground on the sides."""
        scale = min(frame / side for frame, side in zip(self._size, picture.size, strict=True))
        size = [max(1, round(side * scale)) for side in picture.size]
        resized = picture.resize((size[0], size[1]), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
        framed = ground.resize(self._size)
        # An odd pixel goes to the left and the top, as in Fashion-MNIST.
        left, top = (-(-(frame - side) // 2) for frame, side in zip(self._size, size, strict=True))
        framed.paste(resized, (left, top))
        return framed


def _is_light(picture: Image.Image, alpha: Image.Image) -> bool:
    """Whether what lies on transparent ground is so light that it would vanish on white."""
    if (_border(alpha) < 128).mean() <= 0.5:
        return False
    item = np.asarray(picture.convert("L"))[np.asarray(alpha) >= 128]
    return bool(item.size and item.mean() >= 192)


def _ground(picture: Image.Image) -> Image.Image:
    """One pixel of the colour that the picture has in its corners: the median there, channel by channel."""
    side = max(1, min(picture.size) // 28)
    width, height = picture.size
    corners = [
        np.asarray(picture.crop((left, top, left + side, top + side))).reshape(side * side, -1)
        for left in (0, width - side)
        for top in (0, height - side)
    ]
    colour = np.median(np.concatenate(corners), axis=0).round().astype(np.uint8)
    return Image.fromarray(colour.reshape((1, 1) if picture.mode == "L" else (1, 1, 3)))


def _border(picture: Image.Image) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The values of the pixels on the four edges."""
    width, height = picture.size
    edges = [(0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)]
    return np.concatenate([np.asarray(picture.crop(edge)).ravel() for edge in edges])


def _largest_channel(picture: Image.Image) -> Image.Image:
    first, *others = picture.split()
    for channel in others:
        first = ImageChops.lighter(first, channel)
    return first


def _tensor(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
