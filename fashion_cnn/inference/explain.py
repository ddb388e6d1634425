"""Explanations of a prediction: Grad-CAM, integrated gradients and the nearest training images, on one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from captum.attr import IntegratedGradients
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import NetworkRunner, load, load_data
from fashion_cnn.inference.predictor import NONE_OF_THESE, load_calibration
from fashion_cnn.models import Ensemble
from fashion_cnn.models.layers import is_nonlinearity
from fashion_cnn.pictures import decode
from fashion_cnn.pictures.preparation import Invert
from fashion_cnn.plots.style import escape_label, save_figure
from fashion_cnn.runs import Run
from fashion_cnn.terminal import progress_bar

# In a page's own metadata: the picture that it is of.
_SOURCE = "Source"


class Explainer:
    """Explains pictures by a run's network, in float32.

    about: the class to explain, by name; None for the one that the network says. neighbours: how many training images
    to show. reject: as in `calibrate`. invert: see `Preparation`. remark: what people are to know of the probabilities.
    Raises UserError where the run's weights or data cannot be read, or there is no such class.
    """

    def __init__(
        self, run: Run, *, data_root: str | None, neighbours: int, about: str | None, reject: float, invert: Invert
    ) -> None:
        data = load_data(run, data_root)
        self.network = NetworkRunner(load(run), data)
        if isinstance(self.network.module.network, Ensemble):
            raise UserError(f"{run.path} is an ensemble, whose networks look each elsewhere: explain one network.")
        self.data = data
        self.about = None if about is None else _label(about, data)
        self.preparation = data.preparation(invert)
        self.calibration, self.remark = load_calibration(run, reject=reject)
        self.training_images = TrainingImages(self.network)
        self.neighbours = neighbours

    def explain(self, path: Path, folder: Path) -> Path:
        """Write the page of one picture into `folder`. Raises UnreadablePictureError where it is none."""
        picture = decode(path, min_pixels=self.preparation.min_pixels)
        image = self.preparation(picture)
        normalised = self.data.normalise(image[None])
        names = self.data.class_names
        logits = self.network.logits(image[None])
        said = int(logits.argmax())
        probability = self.calibration.probabilities(logits)[0, said]
        unsure = probability < self.calibration.threshold
        answer = f"{NONE_OF_THESE} (most like {names[said]})" if unsure else names[said]
        label = said if self.about is None else self.about
        classes = torch.tensor([label])
        black = self.data.normalise(torch.zeros_like(image))
        network = self.network.module.network
        about = "" if label == said else f"; explained: {names[label]}"
        near = self.training_images.nearest(image[None], self.neighbours)
        explanation = Explanation(
            title=f"{path.name}: {answer}, {probability:.0%}{about}",
            image=image,
            places=grad_cam(network, normalised.clone(), classes)[0],
            attribution=integrated_gradients(network, normalised, classes, black)[0],
            neighbours=[
                (seen, f"{names[target]}\nimage {index}, {likeness:.2f}")
                for seen, target, index, likeness in zip(
                    near.images[0],
                    near.targets[0].tolist(),
                    near.indices[0].tolist(),
                    near.similarity[0].tolist(),
                    strict=True,
                )
            ],
        )
        page = _page(folder, path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            figure = draw(explanation, np.asarray(self.preparation.flatten(picture).convert("RGB")))
            save_figure(figure, page, {_SOURCE: _described(path)})
        except OSError as error:
            raise UserError(f"{page} cannot be written ({error.strerror}): say out=DIR.") from error
        return page


def _page(folder: Path, path: Path) -> Path:
    """Named as the picture is, with a number where that is the page of another one."""
    pages = (folder / (f"{path.name}.png" if number == 1 else f"{path.name}-{number}.png") for number in count(1))
    return next(page for page in pages if not page.exists() or _is_of(page, path))


def _is_of(page: Path, path: Path) -> bool:
    try:
        with Image.open(page) as image:
            return image.info.get(_SOURCE) == _described(path)
    except OSError:
        return False


def _described(path: Path) -> str:
    """The whole path, as a text whatever its name is."""
    return str(path.absolute()).encode(errors="backslashreplace").decode()


def _label(name: str, data: ImageDataModule) -> int:
    if name not in data.class_names:
        raise UserError(f"about={name} is no class: choose one of {', '.join(data.class_names)}.")
    return list(data.class_names).index(name)


@dataclass(frozen=True)
class Explanation:
    """Why a network says what it says of one image.

    title: which picture, and what the network says. image `(C, H, W)` uint8: what the network sees. places `(H, W)`, 0
    to 1: Grad-CAM. attribution `(H, W)`: integrated gradients. neighbours: nearest training images `(C, H, W)` uint8
    with what stands below each, the nearest first.
    """

    title: str
    image: Tensor
    places: Tensor
    attribution: Tensor
    neighbours: Sequence[tuple[Tensor, str]]


def draw(explanation: Explanation, original: np.ndarray) -> Figure:
    """The picture as it came, `(H, W, 3)` uint8, as the network sees it, what mattered, and what is like it."""
    columns = max(4, len(explanation.neighbours))
    figure = Figure(figsize=(2.3 * columns, 5.6), layout="constrained")
    figure.suptitle(escape_label(explanation.title), fontsize=12)
    upper, lower = figure.subplots(2, columns)
    for axes in (*upper, *lower):
        axes.set_axis_off()
    upper[0].imshow(original)
    upper[0].set_title("the picture", fontsize=10)
    _show(explanation.image, upper[1], "what the network sees")
    _show(explanation.image, upper[2], "where it looks (Grad-CAM)")
    upper[2].imshow(explanation.places.numpy(), cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    most = max(explanation.attribution.abs().max().item(), 1e-12)
    upper[3].imshow(explanation.attribution.numpy(), cmap="RdBu", vmin=-most, vmax=most)
    upper[3].set_title(f"for (blue), against (red)\nby up to {most:.2f}", fontsize=10)
    for axes, (image, said) in zip(lower, explanation.neighbours, strict=False):
        _show(image, axes, said)
    return figure


def _show(image: Tensor, axes: Axes, title: str) -> None:
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_title(escape_label(title), fontsize=10)


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """How much each place speaks for the class, `(B, H, W)` from 0 to 1, of normalised images `(B, C, H, W)`.

    classes: `(B,)` int64. The features are those behind the last activation that still has a quarter of the image's
    height: further on, three or four pixels would have to say where. Selvaraju et al., 2017 (arXiv 1610.02391).
    Raises UserError for a network without such features `(B, C, H, W)`, as transformers are.
    """
    height, width = images.shape[-2:]
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        if output.ndim != 4:
            return
        rows, columns = output.shape[-2:]
        # Of features with their channels last, these would be columns and channels, in no proportion to the image.
        in_proportion = abs(rows * width - columns * height) <= max(height, width)
        if in_proportion and rows >= height // 4:
            outputs.append(output)

    # A layer that writes into its input would spoil what was kept of the layer before.
    in_place = [layer for layer in network.modules() if getattr(layer, "inplace", False)]
    hooks = [layer.register_forward_hook(keep) for layer in network.modules() if is_nonlinearity(layer)]
    try:
        for layer in in_place:
            layer.inplace = False  # type: ignore[assignment]
        with torch.enable_grad():
            logits = network(images.requires_grad_())
            if not outputs:
                raise UserError(
                    "Where this network looks cannot be shown: Grad-CAM needs activations (B, C, H, W) of at least a "
                    "quarter of the image's height, as ResNets have and transformers have not: explain such a network."
                )
            features = outputs[-1]
            (slopes,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    finally:
        for layer in in_place:
            layer.inplace = True  # type: ignore[assignment]
        for hook in hooks:
            hook.remove()
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    places = (weights * features.detach()).sum(dim=1, keepdim=True).relu()
    places = functional.interpolate(places, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return places / places.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def integrated_gradients(network: nn.Module, images: Tensor, classes: Tensor, black: Tensor) -> Tensor:
    """What each pixel adds to the logit of the class, or takes from it, `(B, H, W)`, summed over the channels.

    images: normalised, `(B, C, H, W)`. classes: `(B,)` int64. black: a normalised black image `(C, H, W)`. The sum over
    the pixels is the logit less that of the black image. Sundararajan et al., 2017 (arXiv 1703.01365), by captum.
    """
    given: Tensor = IntegratedGradients(network).attribute(
        images, baselines=black.expand_as(images), target=classes, n_steps=64, internal_batch_size=64
    )
    return given.sum(dim=1).detach().float()


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images of each of B images, the nearest first.

    images `(B, K, C, H, W)` uint8, targets `(B, K)`, indices `(B, K)` positions in the training data, similarity
    `(B, K)`: cosine of the embeddings.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    similarity: Tensor


class TrainingImages:
    """The images that a network was trained on, by the direction of their embeddings."""

    def __init__(self, network: NetworkRunner) -> None:
        self._network = network
        split = network.data.train_split
        batches = split.indices.split(network.data.eval_batch_size)
        directions = []
        with progress_bar("training images") as progress:
            for done, batch in enumerate(batches, start=1):
                directions.append(self._directions(split.images_at(batch)))
                progress(done, len(batches))
        self._catalogue = torch.cat(directions)

    def nearest(self, images: Tensor, most: int) -> Neighbours:
        """The `most` training images nearest to each of images `(B, C, H, W)` uint8, by the angle between them."""
        split = self._network.data.train_split
        similarity, places = (self._directions(images) @ self._catalogue.T).topk(min(most, len(split)), dim=1)
        indices = split.indices[places]
        return Neighbours(split.images_at(indices), split.targets[places], indices, similarity)

    def _directions(self, images: Tensor) -> Tensor:
        return functional.normalize(self._network.features(images), dim=1)
