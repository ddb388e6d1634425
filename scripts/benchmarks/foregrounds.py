"""Ways to find the item in a photograph of a scene: U²-Net from an ONNX file, and GrabCut of OpenCV."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fashion_cnn.errors import UserError, require
from fashion_cnn.pictures import Preparation

Mask = NDArray[np.float32]
# Shares of the picture between which a mask is an item, and the margin around it as a share of its longer side.
MIN_ITEM, MAX_ITEM, MARGIN = 0.01, 0.95, 0.1
# Mean and standard deviation of the pixels that U²-Net was trained with.
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
GRAB_CUT_SIDE = 256


class Finder:
    """Finds the mask of the item in a picture, and counts the processor time that it takes.

    Args:
        find: from a picture to the probability of the item for each pixel; the mask may have another size.
    """

    def __init__(self, find: Callable[[Image.Image], Mask]) -> None:
        self._find = find
        self._seconds, self._pictures = 0.0, 0

    def mask(self, picture: Image.Image) -> Mask | None:
        """Return the mask; None if nothing or everything belongs to the item."""
        start = time.process_time()
        mask = self._find(picture)
        self._seconds += time.process_time() - start
        self._pictures += 1
        return mask if MIN_ITEM <= (mask >= 0.5).mean() <= MAX_ITEM else None

    @property
    def seconds(self) -> float:
        """Mean processor time for a picture."""
        return self._seconds / max(self._pictures, 1)


def u2net(file: Path) -> Finder:
    """Load U²-Net (Qin et al., 2020, arXiv 2005.09007) from an ONNX file, on one thread."""
    require("export", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many kinds of errors on missing and damaged files
        raise UserError(f"saliency={file} cannot be loaded ({error}).") from error
    name = session.get_inputs()[0].name
    width, height = session.get_inputs()[0].shape[:1:-1]

    def find(picture: Image.Image) -> Mask:
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
        scaled = (pixels / max(float(pixels.max()), 1.0) - MEAN) / STD
        return np.clip(session.run(None, {name: scaled.transpose(2, 0, 1)[None]})[0][0, 0], 0, 1)

    return Finder(find)


def grab_cut() -> Finder:
    """GrabCut (Rother et al., 2004), which starts from the inner 80% of both sides and takes 5 iterations."""
    import cv2

    cv2.setNumThreads(1)

    def find(picture: Image.Image) -> Mask:
        small = picture.copy()
        small.thumbnail((GRAB_CUT_SIDE, GRAB_CUT_SIDE))
        pixels = np.ascontiguousarray(np.asarray(small)[..., ::-1])
        height, width = pixels.shape[:2]
        left, top = width // 10, height // 10
        mask = np.zeros((height, width), np.uint8)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(pixels, mask, (left, top, width - 2 * left, height - 2 * top), *models, 5, cv2.GC_INIT_WITH_RECT)
        return np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)

    return Finder(find)


def boxed(preparation: Preparation, picture: Image.Image, mask: Mask | None) -> Image.Image:
    """Return the box of the item with a margin, padded to a square; the middle square without an item."""
    if mask is None:
        return _as_image(preparation.array(picture))
    border = np.concatenate(
        [np.asarray(picture)[[0, -1]].reshape(-1, 3), np.asarray(picture)[:, [0, -1]].reshape(-1, 3)]
    )
    background = tuple(int(value) for value in np.median(border, axis=0))
    return _square(preparation, picture.crop(_box(mask, picture.size)), background)


def cut_out(preparation: Preparation, picture: Image.Image, mask: Mask | None) -> Image.Image:
    """Return the item on white in its box with a margin, padded to a square; the middle square without an item."""
    if mask is None:
        return _as_image(preparation.array(picture))
    alpha = Image.fromarray((255 * mask).astype(np.uint8)).resize(picture.size, Image.Resampling.BILINEAR)
    item = Image.composite(picture, Image.new("RGB", picture.size, "white"), alpha)
    return _square(preparation, item.crop(_box(mask, picture.size)), (255, 255, 255))


def _box(mask: Mask, size: tuple[int, int]) -> tuple[int, int, int, int]:
    sides = []
    for axis, length in enumerate(size):
        places = np.flatnonzero((mask >= 0.5).any(axis=axis))
        scale = length / mask.shape[1 - axis]
        sides.append((places[0] * scale, (places[-1] + 1) * scale))
    margin = MARGIN * max(end - start for start, end in sides)
    (left, right), (top, bottom) = (
        (max(0, round(start - margin)), min(length, round(end + margin)))
        for (start, end), length in zip(sides, size, strict=True)
    )
    return left, top, right, bottom


def _square(preparation: Preparation, picture: Image.Image, background: tuple[int, ...]) -> Image.Image:
    side = preparation.image_shape[1]
    return ImageOps.pad(picture, (side, side), Image.Resampling.BICUBIC, color=background)


def _as_image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels.transpose(1, 2, 0))
