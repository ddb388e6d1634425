"""Classification of picture files and of arrays with calibrated probabilities."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fashion_cnn.data.batches import array_to_tensor
from fashion_cnn.errors import UserError, printable
from fashion_cnn.inference.network import EmbeddingNetwork, NetworkOutput, TrainedNetwork
from fashion_cnn.inference.prediction import PictureVectors, Prediction, predictions_of
from fashion_cnn.metrics.calibration import Calibration, calibrate
from fashion_cnn.metrics.predictions import Predictions, read_predictions
from fashion_cnn.models import ImageClassifier
from fashion_cnn.pictures import UnreadablePictureError, decode, read_pictures
from fashion_cnn.runs import Run

_IMAGES_REMEDY = "give an array or tensor, a PIL picture, a path, or a list of these."
# With fewer validation images, the prior of the temperature outweighs them.
_FEW_VALIDATION_IMAGES = 30

# One image or many; see `TrainedClassifier`.
Array = NDArray[np.generic] | Tensor
Picture = Image.Image | str | Path
Images = Array | Picture | Sequence[Array | Picture]


class Predictor:
    """Classifies picture files with a run's network.

    Args:
        network: the network.
        calibration: temperature and rejection threshold, such as those of `load_calibration`; None for neither.
        recognise: returns the recognised concepts and their scores for each of N embeddings `(N, D)`.
        needs_concept: a picture in which no concept is recognised is none of these, whatever the class.
    """

    def __init__(
        self,
        network: EmbeddingNetwork,
        calibration: Calibration | None = None,
        recognise: Callable[[Tensor], list[list[tuple[str, float]]]] = lambda embeddings: [[] for _ in embeddings],
        *,
        needs_concept: bool = False,
    ) -> None:
        self.network = network
        self.calibration = calibration or Calibration()
        self.recognise = recognise
        self.needs_concept = needs_concept

    def predict(self, paths: Iterable[Path], *, top_k: int = 3) -> Generator[Prediction]:
        """Yield the prediction for each file with its `top_k` classes, in the given order, batch by batch."""
        with closing(read_pictures(paths, self.network.preparation)) as pictures:
            while batch := list(islice(pictures, self.network.batch_size)):
                readable = [(path, picture) for path, picture in batch if isinstance(picture, Tensor)]
                predictions: Iterator[Prediction] = iter(())
                if readable:
                    outputs = self.network.outputs(torch.stack([picture for _, picture in readable]))
                    predictions = self.classify(outputs, [path for path, _ in readable], top_k=top_k)
                for path, picture in batch:
                    if isinstance(picture, UnreadablePictureError):
                        yield Prediction(path, error=str(picture))
                    else:
                        yield next(predictions)

    def classify(
        self, outputs: NetworkOutput | PictureVectors, paths: Sequence[Path], *, top_k: int = 3
    ) -> Iterator[Prediction]:
        """Yield the predictions for N files from the network's outputs.

        Args:
            outputs: logits and embeddings of the N pictures.
            paths: the N files.
            top_k: number of classes to return.
        """
        probabilities = self.calibration.probabilities(torch.as_tensor(outputs.logits)).numpy()
        yield from predictions_of(
            probabilities,
            paths,
            class_names=self.network.class_names,
            concepts=self.recognise(torch.as_tensor(outputs.embeddings)),
            threshold=self.calibration.threshold,
            needs_concept=self.needs_concept,
            top_k=top_k,
        )


def load_calibration(run: Run, *, reject: float, flip_average: bool = False) -> tuple[Calibration, str | None]:
    """Fit the calibration of a run on the logits that it stored for its validation images.

    Args:
        run: the run.
        reject: see `calibrate`.
        flip_average: see `read_validation_predictions`.

    Returns:
        The calibration, and a warning if there are few validation images or none.

    Raises:
        UserError: if the logits cannot be read.
    """
    predictions = read_validation_predictions(run, flip_average=flip_average)
    if predictions is None:
        return Calibration(), (
            f"{run.path} holds no predictions of validation images: the probabilities are not calibrated, and nothing "
            "is rejected."
        )
    warning = None
    if len(predictions) < _FEW_VALIDATION_IMAGES:
        warning = (
            f"{run.path} has only {len(predictions)} validation images: probabilities and rejections are poorly "
            "calibrated."
        )
    return calibrate(predictions, reject=reject), warning


def read_validation_predictions(run: Run, *, flip_average: bool = False) -> Predictions | None:
    """Read the logits that the run's best weights gave for its validation images.

    Args:
        run: the run.
        flip_average: take the logits averaged over each image and its mirror image, if the run stored them.

    Returns:
        The logits; None if the run stored none.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        stored = read_predictions(run.predictions_file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{run.predictions_file} is damaged ({error}): delete it to predict without calibration."
        ) from error
    single = stored.get("best.val")
    predictions = stored.get("best.val_flip", single) if flip_average else single
    if predictions is not None and not predictions.logits.numel():
        raise UserError(
            f"{run.predictions_file} is damaged (best.val has no images or classes): delete it to predict without "
            "calibration."
        )
    return predictions


class TrainedClassifier:
    """The network of a finished run, which prepares and normalises its images itself.

    Images are one of

    - a NumPy array or tensor `(N, C, H, W)`, `(N, H, W, C)` or, for grey images, `(N, H, W)`, or one such image without
      N, of the size that the network was trained on. Values are uint8, or numbers from 0 to 1 (also bool) or whole
      numbers from 0 to 255, which mean the same images. They must not be normalised.
    - a PIL picture of any size or the path of a picture file, which are cut out and resized as
      `python -m fashion_cnn.predict` does it.
    - a list of single images, each in one of these forms.

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

    def __repr__(self) -> str:
        """Return the run, the size of the images and the classes."""
        size = " x ".join(map(str, self.image_shape))
        names = ", ".join(self.class_names[:3]) + (", …" if len(self.class_names) > 3 else "")
        return f"TrainedClassifier({self.run}: images {size}, {len(self.class_names)} classes: {names})"

    @property
    def module(self) -> ImageClassifier:
        """The bare LightningModule, in eval mode; it takes normalised float images `(N, C, H, W)`."""
        return self._network.module

    def predict(self, images: Images) -> NDArray[np.int64]:
        """Classify images.

        Args:
            images: N images, see the class.

        Returns:
            Class indices `(N,)`; `class_names` gives their names.

        Raises:
            UserError: if an image cannot be read, or has another size or range of values than the network takes.
        """
        return self._network.logits(self.prepare(images)).argmax(dim=1).numpy()

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Estimate the probability of each class.

        Args:
            images: N images, see the class.

        Returns:
            Probabilities `(N, num_classes)`, rows that sum to 1, temperature-scaled on the run's validation images if
            there are any.

        Raises:
            UserError: if an image cannot be read, or has another size or range of values than the network takes.
        """
        return self._calibration.probabilities(self._network.logits(self.prepare(images))).float().numpy()

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Compute embeddings, by which similar images have a large dot product.

        Args:
            images: N images, see the class.

        Returns:
            Unit vectors `(N, D)`, the normalised inputs of the last linear layer.

        Raises:
            UserError: if an image cannot be read, or has another size or range of values than the network takes, or the
                network has no embeddings.
        """
        return self._network.embed(self.prepare(images)).numpy()

    def prepare(self, images: Images) -> Tensor:
        """Convert images to what the network was trained on, before its normalisation; the other methods call it.

        Args:
            images: N images, see the class.

        Returns:
            The images `(N, C, H, W)` uint8, on the CPU unless they are a tensor on another device. With
            `(images / 255 - mean) / std` per channel they are an input of `module`.

        Raises:
            UserError: if an image cannot be read, or has another size or range of values than the network takes.
        """
        if isinstance(images, Image.Image | str | Path):
            images = [images]
        if isinstance(images, np.ndarray | Tensor):
            return self._with_batch_dimension(_as_bytes(_as_tensor(images), str(images.dtype)))
        if not isinstance(images, Sequence):
            raise UserError(f"images={images!r} is no image: {_IMAGES_REMEDY}")
        # The range of values is that of all arrays together: an image alone may be black.
        arrays = [image for image in images if isinstance(image, np.ndarray | Tensor)]
        prepared = iter(self._prepare_arrays(arrays))
        tensors = [
            next(prepared) if isinstance(image, np.ndarray | Tensor) else self._prepare_picture(image)
            for image in images
        ]
        return torch.stack(tensors) if tensors else torch.zeros(0, *self.image_shape, dtype=torch.uint8)

    def _prepare_arrays(self, arrays: Sequence[Array]) -> Sequence[Tensor]:
        """Convert arrays of one image each."""
        if not arrays:
            return ()
        tensors = [_as_tensor(array) for array in arrays]
        if len(shapes := dict.fromkeys(tuple(tensor.shape) for tensor in tensors)) > 1:
            raise UserError(f"images are arrays of different shapes, {' and '.join(map(str, list(shapes)[:2]))}.")
        prepared = self._with_batch_dimension(_as_bytes(torch.stack(tensors), str(arrays[0].dtype)))
        if len(prepared) != len(arrays):
            raise UserError(f"images are arrays of shape {next(iter(shapes))}: give each image in an array of its own.")
        return [*prepared]

    def _prepare_picture(self, picture: object) -> Tensor:
        if not isinstance(picture, Image.Image | str | Path):
            raise UserError(f"images hold a {type(picture).__name__}: {_IMAGES_REMEDY}")
        if not isinstance(picture, Image.Image):
            picture = _read_picture(Path(picture), self._network.preparation.min_pixels)
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


def _read_picture(path: Path, min_pixels: int) -> Image.Image:
    if path.is_dir():
        raise UserError(f"{path} is a folder: give its files, such as list(Path({str(path)!r}).glob('*.jpg')).")
    try:
        return decode(path, min_pixels=min_pixels)
    except UnreadablePictureError as error:
        raise UserError(printable(f"{path} {error}.")) from error


def _as_tensor(images: Array) -> Tensor:
    if isinstance(images, Tensor):
        return images.detach()
    if images.dtype.kind not in "biuf":
        raise UserError(f"images are an array of {images.dtype}: {_IMAGES_REMEDY}")
    return array_to_tensor(images)


def _as_bytes(images: Tensor, dtype: str) -> Tensor:
    """Convert pixel values to uint8, from 0 to 255.

    Args:
        images: the values.
        dtype: name of the type that they were given in, for the message.

    Raises:
        UserError: if the values are normalised, or in no known range.
    """
    if images.dtype == torch.uint8 or not images.numel():
        return images.to(torch.uint8)
    if images.dtype == torch.bool:
        return images.to(torch.uint8) * 255
    values = images.double()
    low, high = float(values.min()), float(values.max())
    if images.is_floating_point() and low >= 0 and high <= 1:
        return (values * 255).round().to(torch.uint8)
    if low >= 0 and high <= 255 and bool((values == values.round()).all()):
        return images.to(torch.uint8)
    advice = "They look normalised, which this object does itself. " if low < 0 else ""
    raise UserError(
        f"images have {dtype} values from {low:.4g} to {high:.4g}. {advice}"
        "Give uint8, numbers from 0 to 1, or whole numbers from 0 to 255."
    )
