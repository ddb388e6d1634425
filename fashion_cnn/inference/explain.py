"""Explanations of predictions: Grad-CAM, integrated gradients and nearest training images."""

import hashlib
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from captum.attr import IntegratedGradients
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from fashion_cnn.analysis.report import run_title
from fashion_cnn.errors import UserError, unusable
from fashion_cnn.inference.network import NetworkRunner, load, load_data, weights_sha256
from fashion_cnn.inference.prediction import NONE_OF_THESE
from fashion_cnn.inference.predictor import load_calibration
from fashion_cnn.metrics.predictions import check_unpacked_size
from fashion_cnn.models import Ensemble
from fashion_cnn.models.hardware import select_device
from fashion_cnn.models.layers import is_nonlinearity
from fashion_cnn.pictures import decode
from fashion_cnn.pictures.preparation import Invert
from fashion_cnn.plots.style import escape_label, save_figure
from fashion_cnn.runs import Run
from fashion_cnn.runs.files import open_atomically
from fashion_cnn.terminal import progress_bar

# PNG metadata of a page: the path of the picture that it explains.
_SOURCE = "Source"


class Explainer:
    """Explains pictures by a run's network, in float32 on the CPU.

    Args:
        run: the run.
        data_root: the directory of the data set; None for the one that the run read.
        neighbours: number of training images to show.
        training_images: number of training images among which these are searched; None for all.
        about: name of the class to explain; None for the predicted class.
        reject: see `calibrate`.
        invert: see `Preparation`.

    Attributes:
        run_title: name of the run.
        warning: problem with the calibration of the probabilities, if any.

    Raises:
        UserError: if the run's weights or data cannot be read, or there is no such class.
    """

    def __init__(
        self,
        run: Run,
        *,
        data_root: str | None,
        neighbours: int,
        training_images: int | None,
        about: str | None,
        reject: float,
        invert: Invert,
    ) -> None:
        data = load_data(run, data_root)
        config = run.config()
        self.run_title = run_title(run, {"name": config.get("name"), "seed": config.get("seed")})
        self.network = NetworkRunner(load(run), data)
        if isinstance(self.network.module.network, Ensemble):
            raise UserError(f"{run.path} is an ensemble, whose members look at different places: explain one network.")
        if about is not None and about not in data.class_names:
            raise UserError(f"about={about} is not a class: choose one of {', '.join(data.class_names)}.")
        self.about = None if about is None else data.class_names.index(about)
        self.preparation = data.preparation(invert)
        self.calibration, self.warning = load_calibration(run, reject=reject)
        trainer = run.config().trainer
        device = select_device(trainer.accelerator, trainer.get("devices", 1))
        fast = self.network if device.type == "cpu" else NetworkRunner(load(run), data, device=device)
        self.training_images = TrainingImages(fast, count=training_images, cache=run.training_embeddings)
        self.neighbours = neighbours

    def explain(self, path: Path, folder: Path) -> Path:
        """Write the explanation of one picture as a PNG page.

        Args:
            path: the picture.
            folder: the directory to write to.

        Returns:
            The path of the page.

        Raises:
            UnreadablePictureError: if the file is not a picture.
            UserError: if the page cannot be written.
        """
        picture = decode(path, min_pixels=self.preparation.min_pixels)
        explanation = self._explanation(path.name, self.preparation(picture))
        page = _page_path(folder, path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            figure = draw(explanation, np.asarray(self.preparation.flatten(picture).convert("RGB")))
            save_figure(figure, page, {_SOURCE: _source_text(path)})
        except OSError as error:
            raise unusable(error, folder, "choose another out=DIR") from error
        return page

    def _explanation(self, name: str, image: Tensor) -> "Explanation":
        data, network = self.network.data, self.network.module.network
        logits = self.network.logits(image[None])
        predicted = int(logits.argmax())
        label = predicted if self.about is None else self.about
        probability = self.calibration.probabilities(logits)[0, predicted]
        title = data.class_names[predicted]
        if probability < self.calibration.threshold:
            title = f"{NONE_OF_THESE} (most like {title})"
        title = f"{name}: {title}, {probability:.0%}"
        if label != predicted:
            title += f"; explained: {data.class_names[label]}"
        normalised, black = data.normalise(image[None]), data.normalise(torch.zeros_like(image))
        nearest = self.training_images.nearest(image[None], self.neighbours)
        neighbours = zip(
            nearest.images[0],
            nearest.targets[0].tolist(),
            nearest.indices[0].tolist(),
            nearest.similarity[0].tolist(),
            strict=True,
        )
        return Explanation(
            title=title,
            run=self.run_title,
            image=image,
            grad_cam=grad_cam(network, normalised.clone(), torch.tensor([label]))[0],
            attribution=integrated_gradients(network, normalised, torch.tensor([label]), black)[0],
            neighbours=[
                (neighbour, neighbour_caption(data.class_names[target], index, similarity))
                for neighbour, target, index, similarity in neighbours
            ],
        )


def _page_path(folder: Path, path: Path) -> Path:
    """Return the path of a picture's page: its name with `.png`, numbered if another picture has that page."""
    pages = (folder / (f"{path.name}.png" if number == 1 else f"{path.name}-{number}.png") for number in count(1))
    return next(page for page in pages if not page.exists() or _explains(page, path))


def _explains(page: Path, path: Path) -> bool:
    if not page.is_file():  # A named pipe could block for ever.
        return False
    try:
        with Image.open(page, formats=["PNG"]) as image:
            return image.info.get(_SOURCE) == _source_text(path)
    except OSError:
        return False


def _source_text(path: Path) -> str:
    return str(path.absolute()).encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class Explanation:
    """Why a network predicts a class for one image.

    Attributes:
        title: name of the picture, and the prediction.
        image: input of the network, `(C, H, W)` uint8.
        grad_cam: `(H, W)`, from 0 to 1.
        attribution: integrated gradients, `(H, W)`.
        neighbours: nearest training images `(C, H, W)` uint8 with their captions, the nearest first.
        run: name of the run.
    """

    title: str
    image: Tensor
    grad_cam: Tensor
    attribution: Tensor
    neighbours: Sequence[tuple[Tensor, str]]
    run: str = ""


def neighbour_caption(class_name: str, index: int, similarity: float) -> str:
    """Return the caption of a similar training image."""
    return f"{class_name}\nimage {index}\nsimilarity {similarity:.2f}"


def draw(explanation: Explanation, original: np.ndarray) -> Figure:
    """Draw an explanation as one page.

    Args:
        explanation: the explanation.
        original: the picture itself, `(H, W, 3)` uint8.
    """
    columns = max(4, len(explanation.neighbours))
    # Inches: the upper row has four panels, the lower one is as wide with six.
    width = max(9.2, 1.53 * columns)
    heights = (2.9, width / columns + 1)
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(escape_label(f"{explanation.title}\n{explanation.run}"), fontsize=12)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    bottom.suptitle("The most similar training images, with the cosine similarity of the embeddings", fontsize=11)
    upper, lower = top.subplots(1, 4), bottom.subplots(1, columns)
    for axes in (*upper, *lower):
        axes.set_axis_off()
    upper[0].imshow(original)
    upper[0].set_title("the picture", fontsize=10)
    _show_image(explanation.image, upper[1], "input of the network")
    _show_image(explanation.image, upper[2], "Grad-CAM")
    upper[2].imshow(explanation.grad_cam.numpy(), cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    maximum = max(explanation.attribution.abs().max().item(), 1e-12)
    upper[3].imshow(explanation.attribution.numpy(), cmap="RdBu", vmin=-maximum, vmax=maximum)
    upper[3].set_title(f"integrated gradients: for (blue)\nand against (red), up to {maximum:.2f}", fontsize=9)
    for axes, (image, caption) in zip(lower, explanation.neighbours, strict=False):
        _show_image(image, axes, caption)
    return figure


def _show_image(image: Tensor, axes: Axes, title: str) -> None:
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_title(escape_label(title), fontsize=10)


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Compute Grad-CAM: how much each location of an image contributes to the logit of a class.

    The features are those of the last activation with at least a quarter of the image's height; later ones have too
    low a resolution. Selvaraju et al., 2017 (arXiv 1610.02391).

    Args:
        network: the network, in eval mode.
        images: normalised images `(B, C, H, W)`.
        classes: class indices `(B,)` int64.

    Returns:
        Heat maps `(B, H, W)`, from 0 to 1.

    Raises:
        UserError: if the network has no such features `(B, C, H, W)`, as transformers.
    """
    height, width = images.shape[-2:]
    outputs: list[Tensor] = []

    def store_output(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        if output.ndim != 4:
            return
        rows, columns = output.shape[-2:]
        # With channels last, these are columns and channels, which are not in proportion to the image.
        in_proportion = abs(rows * width - columns * height) <= max(height, width)
        if in_proportion and rows >= height // 4:
            outputs.append(output)

    # An in-place layer would overwrite the stored output of the layer before.
    in_place = [layer for layer in network.modules() if getattr(layer, "inplace", False)]
    hooks = [layer.register_forward_hook(store_output) for layer in network.modules() if is_nonlinearity(layer)]
    try:
        for layer in in_place:
            layer.inplace = False  # type: ignore[assignment]
        with torch.enable_grad():
            logits = network(images.requires_grad_())
            if not outputs:
                raise UserError(
                    "Grad-CAM needs activations (B, C, H, W) of at least a quarter of the image's height: explain a "
                    "convolutional network such as a ResNet, not a transformer."
                )
            features = outputs[-1]
            (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    finally:
        for layer in in_place:
            layer.inplace = True  # type: ignore[assignment]
        for hook in hooks:
            hook.remove()
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    maps = (weights * features.detach()).sum(dim=1, keepdim=True).relu()
    maps = functional.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def integrated_gradients(network: nn.Module, images: Tensor, classes: Tensor, black: Tensor) -> Tensor:
    """Compute integrated gradients: the contribution of each pixel to the logit of a class, summed over the channels.

    The contributions add up to the logit minus that of the black image. Sundararajan et al., 2017 (arXiv 1703.01365).

    Args:
        network: the network, in eval mode.
        images: normalised images `(B, C, H, W)`.
        classes: class indices `(B,)` int64.
        black: normalised black image `(C, H, W)`, the baseline.

    Returns:
        Contributions `(B, H, W)`.
    """
    attribution: Tensor = IntegratedGradients(network).attribute(
        images, baselines=black.expand_as(images), target=classes, n_steps=64, internal_batch_size=64
    )
    return attribution.sum(dim=1).detach().float()


@dataclass(frozen=True)
class Neighbours:
    """The K nearest training images of B images, the nearest first.

    Attributes:
        images: `(B, K, C, H, W)` uint8.
        targets: `(B, K)`.
        indices: `(B, K)`, positions in the training data.
        similarity: `(B, K)`, cosine similarity of the embeddings.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    similarity: Tensor


class TrainingImages:
    """Index of training images by the direction of their embeddings.

    Args:
        network: the network, with its data module's training images in memory.
        count: number of training images, a stratified sample; None for all.
        cache: file that keeps the embeddings for the next call; None to keep none.
    """

    def __init__(self, network: NetworkRunner, *, count: int | None = None, cache: Path | None = None) -> None:
        self._network = network
        # A prefix of the training images is a stratified sample of them.
        self._indices = network.data.train_split.indices[:count]
        key = self._key() if cache else ""
        stored = _read_embeddings(cache, key, len(self._indices)) if cache else None
        self._embeddings = self._embed_all() if stored is None else stored
        if cache and stored is None:
            # Without space or permission the next call computes them again.
            with suppress(OSError), open_atomically(cache) as file:
                np.savez(file, key=key, embeddings=self._embeddings.numpy())

    def _key(self) -> str:
        """Return a hash of everything that the embeddings depend on: weights, normalisation and images."""
        data = self._network.data
        digest = hashlib.sha256(weights_sha256(self._network.module.state_dict()).encode())
        digest.update(str([data.pixel_mean.tolist(), data.pixel_scale.tolist()]).encode())
        for batch in self._indices.split(self._network.batch_size):
            digest.update(data.train_split.images_at(batch).numpy().tobytes())
        return digest.hexdigest()

    def _embed_all(self) -> Tensor:
        batches = self._indices.split(self._network.batch_size)
        embeddings = []
        with progress_bar("training images") as progress:
            for done, batch in enumerate(batches, start=1):
                embeddings.append(self._embed(self._network.data.train_split.images_at(batch)))
                progress(done, len(batches))
        return torch.cat(embeddings)

    def nearest(self, images: Tensor, top_k: int) -> Neighbours:
        """Find the `top_k` training images with the most similar embeddings for images `(B, C, H, W)` uint8."""
        split = self._network.data.train_split
        similarity, ranks = (self._embed(images) @ self._embeddings.T).topk(min(top_k, len(self._indices)), dim=1)
        indices = self._indices[ranks]
        return Neighbours(split.images_at(indices), split.targets[ranks], indices, similarity)

    def _embed(self, images: Tensor) -> Tensor:
        return functional.normalize(self._network.features(images), dim=1)


def _read_embeddings(cache: Path, key: str, count: int) -> Tensor | None:
    """Read the embeddings `(count, D)` that were stored with this key; None if there are none."""
    if not cache.is_file():  # A named pipe could block for ever.
        return None
    try:
        with np.load(cache) as stored:
            check_unpacked_size(stored.zip, cache)
            if str(stored["key"]) != key:
                return None
            embeddings = stored["embeddings"]
    except (OSError, ValueError, TypeError, KeyError, EOFError, AttributeError, BadZipFile, zlib.error):
        return None
    is_usable = embeddings.ndim == 2 and len(embeddings) == count and embeddings.dtype == np.float32
    return torch.from_numpy(embeddings) if is_usable else None
