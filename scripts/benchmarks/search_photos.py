"""Synthetic product photographs from the images of a data set: large, on white background, with camera noise."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor


def make_photographs(images: Tensor, folder: Path, *, size: tuple[int, int] = (400, 500)) -> list[Path]:
    """Write a JPEG file of `size` (width, height) for each of the inverted images `(N, 1, H, W)` uint8."""
    random = np.random.default_rng(0)
    width, height = size
    noise = random.normal(0, 3, (height, width, 3))
    files = []
    for number, image in enumerate(images.numpy()):
        item = Image.fromarray(255 - image[0]).resize((width, width), Image.Resampling.BICUBIC)
        photograph = Image.new("RGB", size, (255, 255, 255))
        photograph.paste(item, (0, (height - width) // 2))
        grainy = np.asarray(photograph) + np.roll(noise, number * 37, axis=1)
        file = folder / f"{number:05}.jpg"
        Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
        files.append(file)
    return files
