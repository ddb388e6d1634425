"""Changes between the shop's photograph of a product and a customer's: crop, light, background, blur, rotation."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from fashion_cnn.pictures.colour import foreground, to_lab

Random = np.random.Generator
Picture = Image.Image


def on_white(picture: Picture) -> Picture:
    """Return a picture in RGB, with white behind transparent pixels."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    return flat


def crop(picture: Picture, random: Random, share: float = 0.6) -> Picture:
    """Cut out a random window of `share` of the width and of the height."""
    width, height = round(picture.width * share), round(picture.height * share)
    left, top = (int(random.integers(room + 1)) for room in (picture.width - width, picture.height - height))
    return picture.crop((left, top, left + width, top + height))


def light(picture: Picture, random: Random) -> Picture:
    """Change brightness and contrast, each by a factor of 0.6 to 1.5."""
    brighter = ImageEnhance.Brightness(picture).enhance(random.uniform(0.6, 1.5))
    return ImageEnhance.Contrast(brighter).enhance(random.uniform(0.6, 1.5))


def item_mask(picture: Picture) -> Picture:
    """Return the mask of the item, mode L: the alpha channel, what differs from a plain background, or an ellipse.

    The ellipse, for scenes, has 80% of the width and of the height.
    """
    if picture.mode == "RGBA":
        return picture.getchannel("A")
    small = picture.convert("RGB")
    small.thumbnail((112, 112))
    item = foreground(to_lab(np.asarray(small)))
    if item is None:
        mask, (width, height) = Image.new("L", small.size), small.size
        ImageDraw.Draw(mask).ellipse((0.1 * width, 0.1 * height, 0.9 * width, 0.9 * height), fill=255)
    else:
        mask = Image.fromarray(np.uint8(255) * item)
    return mask.resize(picture.size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(min(picture.size) / 150))


def new_ground(picture: Picture, random: Random, backgrounds: Sequence[Picture]) -> Picture:
    """Put the item on a random part of one of the photographs `backgrounds`."""
    background = crop(backgrounds[int(random.integers(len(backgrounds)))], random, random.uniform(0.4, 0.9))
    changed = ImageOps.fit(background, picture.size)
    changed.paste(picture.convert("RGB"), mask=item_mask(picture))
    return changed


def blur(picture: Picture, random: Random) -> Picture:
    """Blur with a radius of 1% of the shorter side, and save as JPEG of quality 20."""
    file = io.BytesIO()
    picture.filter(ImageFilter.GaussianBlur(0.01 * min(picture.size))).save(file, "JPEG", quality=20)
    return Image.open(file).convert("RGB")


def rotate(picture: Picture, random: Random) -> Picture:
    """Rotate by 15 degrees to either side; the corners get the median colour of the border."""
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = tuple(int(value) for value in np.median(border, axis=0))
    angle = 15 if random.random() < 0.5 else -15
    return picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=colour)


def recolour(picture: Picture, degrees: int) -> Picture:
    """Turn the hue of the item by an angle; greyish pixels get a saturation of a quarter first."""
    hue, saturation, value = on_white(picture).convert("HSV").split()
    turned = hue.point([(level + round(degrees / 360 * 256)) % 256 for level in range(256)])
    coloured = saturation.point([max(level, 64) for level in range(256)])
    changed = Image.merge("HSV", (turned, coloured, value)).convert("RGB")
    return Image.composite(changed, on_white(picture), item_mask(picture))


def changes(backgrounds: Sequence[Picture]) -> dict[str, Callable[[Picture, Random], Picture]]:
    """Return the changes by name; each takes a picture, of mode RGB or RGBA, and a random generator.

    Args:
        backgrounds: photographs that items are put on.
    """

    def all_five(picture: Picture, random: Random, share: float = 0.6) -> Picture:
        turned = rotate(new_ground(picture, random, backgrounds), random)
        return blur(light(crop(turned, random, share), random), random)

    return {
        "crop to 60%": lambda picture, random: crop(on_white(picture), random),
        "brightness, contrast": lambda picture, random: light(on_white(picture), random),
        "changed background": lambda picture, random: new_ground(picture, random, backgrounds),
        "blur, JPEG 20": lambda picture, random: blur(on_white(picture), random),
        "rotated by 15°": lambda picture, random: rotate(on_white(picture), random),
        "mirrored": lambda picture, random: ImageOps.mirror(on_white(picture)),
        "first five at once": all_five,
        "the same, crop of 60% of the area": lambda picture, random: all_five(picture, random, 0.6**0.5),
    }
