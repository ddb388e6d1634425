"""Use a trained network from Python: classes, probabilities and embeddings of arrays and pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.inference.predictor import load_calibration
from fashion_cnn.models import ImageClassifier
from fashion_cnn.pictures import decode
from fashion_cnn.runs import Run

# One image or many; see `TrainedClassifier`.
Picture = Image.Image | str | Path
Images = NDArray[np.generic] | Tensor | Picture | Sequence[Picture]


class TrainedClassifier:
    """The network of a finished run, which prepares and normalises its images itself.

    Images are one of

    - a NumPy array or tensor `(N, C, H, W)`, `(N, H, W, C)` or, for grey images, `(N, H, W)`, or one such image without
      N, of the size that the network was trained on. Values are uint8, or numbers from 0 to 1 or whole numbers from 0
      to 255, which mean the same images. They must not be normalised.
    - a PIL picture of any size or the path of a picture file, or a list of them, which are cut out and resized as
      `python -m fashion_cnn.predict` does it.

    Args:
        run: the run directory.
        flip_average: average the logits and the embeddings of each image and its mirror image.

    Attributes:
        module: the bare LightningModule, in eval mode; it takes normalised float images `(N, C, H, W)`.
        class_names: names of the classes, in the order of their indices.
        image_shape: `(C, H, W)`.
        mean: mean of each channel, for pixels from 0 to 1.
        std: standard deviation of each channel, for pixels from 0 to 1.
        run: the run directory.

    Raises:
        UserError: if the run's weights cannot be read.
    """

    def __init__(self, run: Run, *, flip_average: bool = False) -> None:
        self._network = TrainedNetwork(run, flip_average=flip_average)
        self._calibration, _ = load_calibration(run, reject=0.0, flip_average=flip_average)
        self.run = run.path
        self.class_names: tuple[str, ...] = self._network.class_names
        self.image_shape: tuple[int, int, int] = self._network.preparation.image_shape
        data = self._network.data
        self.mean: tuple[float, ...] = tuple(round(mean / 255, 6) for mean in data.pixel_mean.flatten().tolist())
        self.std: tuple[float, ...] = tuple(round(1 / 255 / scale, 6) for scale in data.pixel_scale.flatten().tolist())

    @property
    def module(self) -> ImageClassifier:
        """The bare LightningModule, in eval mode; it takes normalised float images `(N, C, H, W)`."""
        return self._network.module

    def predict(self, images: Images) -> NDArray[np.int64]:
        """Return class indices `(N,)`; `class_names` gives their names.

        Raises:
            UserError: if the images have another size or range of values than the network takes.
        """
        return self._network.logits(self.prepare(images)).argmax(dim=1).numpy()

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Return class probabilities `(N, num_classes)`, temperature-scaled on the run's validation images.

        Raises:
            UserError: if the images have another size or range of values than the network takes.
        """
        return self._calibration.probabilities(self._network.logits(self.prepare(images))).float().numpy()

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return embeddings, unit vectors `(N, D)`: similar images have a large dot product.

        Raises:
            UserError: if the images have another size or range of values than the network takes.
        """
        return self._network.embed(self.prepare(images)).numpy()

    def prepare(self, images: Images) -> Tensor:
        """Return images as the uint8 tensor `(N, C, H, W)` that the network's normalisation takes.

        Raises:
            UserError: if the images have another size or range of values than the network takes.
        """
        if isinstance(images, Image.Image | str | Path):
            images = [images]
        if isinstance(images, np.ndarray | Tensor):
            return self._with_batch_dimension(_as_bytes(torch.as_tensor(images)))
        if not images:
            return torch.zeros(0, *self.image_shape, dtype=torch.uint8)
        return torch.stack([self._prepare_picture(picture) for picture in images])

    def _prepare_picture(self, picture: Picture) -> Tensor:
        if not isinstance(picture, Image.Image | str | Path):
            raise UserError(
                f"images hold a {type(picture).__name__}: give one array or tensor, or a list of PIL pictures or paths."
            )
        if not isinstance(picture, Image.Image):
            picture = decode(Path(picture), min_pixels=self._network.preparation.min_pixels)
        if picture.mode not in ("L", "LA", "RGB", "RGBA"):
            picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
        return self._network.preparation(picture)

    def _with_batch_dimension(self, images: Tensor) -> Tensor:
        channels, height, width = self.image_shape
        if images.shape in ((channels, height, width), (height, width, channels)) or (
            images.shape == (height, width) and channels == 1
        ):
            images = images[None]
        if images.ndim == 3 and channels == 1:
            images = images[:, None]
        if images.ndim == 4 and images.shape[1:] == (height, width, channels):
            images = images.permute(0, 3, 1, 2)
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise UserError(
                f"images of shape {tuple(images.shape)} do not fit: the network takes "
                f"(N, {channels}, {height}, {width}). Give PIL pictures or paths to have other sizes resized."
            )
        return images


def _as_bytes(images: Tensor) -> Tensor:
    """Convert pixel values to uint8, from 0 to 255.

    Raises:
        UserError: if the values are normalised, or in no known range.
    """
    if images.dtype == torch.uint8 or not images.numel():
        return images.to(torch.uint8)
    values = images.double()
    low, high = float(values.min()), float(values.max())
    if images.is_floating_point() and low >= 0 and high <= 1:
        return (values * 255).round().to(torch.uint8)
    if images.dtype != torch.bool and low >= 0 and high <= 255 and bool((values == values.round()).all()):
        return images.to(torch.uint8)
    advice = "They look normalised, which this object does itself. " if low < 0 else ""
    raise UserError(
        f"images have {images.dtype} values from {low:.4g} to {high:.4g}. {advice}"
        "Give uint8, numbers from 0 to 1, or whole numbers from 0 to 255."
    )
