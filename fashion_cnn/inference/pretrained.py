"""A network with ImageNet weights as the embedding of a product search, beside a description of the item's colours."""

import hashlib
import json
from dataclasses import asdict
from typing import cast

import torch
from torch import Tensor, nn

from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError, require
from fashion_cnn.inference.network import EmbeddingNetwork, NetworkOutput, PretrainedSettings
from fashion_cnn.models import ImageClassifier, TimmBackbone
from fashion_cnn.models.backbones import PACKAGED_NETWORK, PACKAGED_SHA256, packaged_weights
from fashion_cnn.models.hardware import select_device
from fashion_cnn.pictures import PREPARATION_VERSION, Preparation
from fashion_cnn.pictures.colour import COLOUR_VERSION, HISTOGRAM_SIZE, colour_histogram, colour_name, has_item
from fashion_cnn.runs import Run

# Column of a catalogue with the main colour of each product.
COLOUR_COLUMN = "main_colour"
_VERSION = f"{PREPARATION_VERSION}.{COLOUR_VERSION}"
_MIN_SIZE, _MAX_SIZE = 64, 640
_BATCH_SIZE = 32


def pretrained_settings(*, size: int, trim: bool, colour_weight: float) -> PretrainedSettings:
    """Return the settings of vectors that this version makes.

    Args:
        size: see `PretrainedSettings`.
        trim: see `PretrainedSettings`.
        colour_weight: see `PretrainedSettings`.

    Raises:
        UserError: if a value is out of range.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not _MIN_SIZE <= size <= _MAX_SIZE:
        raise UserError(f"photographs.size={size} is not possible: give {_MIN_SIZE} to {_MAX_SIZE} pixels.", status=2)
    if not isinstance(trim, bool):
        raise UserError(f"photographs.trim={trim} is not possible: give true or false.", status=2)
    if isinstance(colour_weight, bool) or not isinstance(colour_weight, int | float) or not 0 <= colour_weight <= 1:
        raise UserError(
            f"photographs.colour_weight={colour_weight} is not possible: give a number from 0 to 1.", status=2
        )
    return PretrainedSettings(size, trim, float(colour_weight), PACKAGED_NETWORK, PACKAGED_SHA256, _VERSION)


def check_settings(stored: PretrainedSettings, uri: str) -> None:
    """Check that this version makes the vectors of a catalogue.

    Args:
        stored: the settings in the catalogue.
        uri: its address.

    Raises:
        UserError: if it makes others.
    """
    own = asdict(pretrained_settings(size=stored.size, trim=stored.trim, colour_weight=stored.colour_weight))
    if differing := [name for name, value in asdict(stored).items() if value != own[name]]:
        name = differing[0]
        raise UserError(
            f"{uri} was indexed with {name}={asdict(stored)[name]:.80}, this version has {own[name]}: index again with "
            "embedding=pretrained rebuild=true."
        )


class PretrainedNetwork(EmbeddingNetwork):
    """EfficientNet-Lite0 with its packaged ImageNet weights; classes are those of ImageNet.

    An embedding joins the network's features with the colour histogram of the item, so that the cosine of two of them
    is `1 - colour_weight` times the cosine of the features plus `colour_weight` times that of the histograms.

    Args:
        run: where what is taught to the network is stored, such as the folder of the catalogue.
        settings: what its vectors are made of.
        flip_average: average the logits and features of each image and its mirror image.

    Raises:
        UserError: if timm or the package of the weights is not installed.
    """

    pretrained: PretrainedSettings
    measured_columns = (COLOUR_COLUMN,)

    def __init__(self, run: Run, settings: PretrainedSettings, *, flip_average: bool = True) -> None:
        require("photos", "timm")
        photographs = _Photographs(settings)
        with torch.random.fork_rng(devices=[]):
            network = TimmBackbone(in_channels=3, num_classes=len(photographs.class_names), name=settings.backbone)
        weights = packaged_weights(network.backbone)
        head = {name.removeprefix("classifier."): weights.pop(name) for name in [*weights] if "classifier." in name}
        network.backbone.load_state_dict(weights)
        network.classifier.load_state_dict(head)
        module = ImageClassifier(
            network=cast("nn.Module", network),
            image_shape=photographs.image_shape,
            num_classes=len(photographs.class_names),
        )
        super().__init__(
            run,
            module,
            photographs,
            photographs.preparation(),
            flip_average=flip_average,
            device=select_device("auto", 1),
        )
        self.pretrained = settings

    @property
    def dimensions(self) -> int:
        """Length of the embeddings."""
        return super().dimensions + (HISTOGRAM_SIZE if self.pretrained.colour_weight else 0)

    @property
    def identity(self) -> str:
        """A hash of the settings: the weights and the preparation have their checksum and version among them."""
        return hashlib.sha256(json.dumps(asdict(self.pretrained)).encode()).hexdigest()[:16]

    def outputs(self, images: Tensor) -> NetworkOutput:
        """Logits and embeddings of prepared images `(N, C, H, W)` uint8, in one pass."""
        output, weight = super().outputs(images), self.pretrained.colour_weight
        if not weight:
            return output
        colours = torch.stack([torch.from_numpy(colour_histogram(image.numpy())) for image in images.cpu()])
        joined = torch.cat([(1 - weight) ** 0.5 * output.embeddings, weight**0.5 * colours], dim=1)
        return NetworkOutput(output.logits, joined)

    def finds_item(self, image: Tensor) -> bool:
        """Whether a prepared photograph `(3, H, W)` shows an item on a plain ground."""
        return has_item(image.numpy())

    def measure_columns(self, images: Tensor) -> dict[str, list[str]]:
        """The main colour of each prepared image `(N, C, H, W)` uint8."""
        return {COLOUR_COLUMN: [colour_name(image.numpy()) for image in images.cpu()]}


class _Photographs(ImageDataModule):
    """Photographs of the classes of ImageNet, of which there is none here: classes and normalisation alone."""

    def __init__(self, settings: PretrainedSettings) -> None:
        # Imported here, as timm: slow, and only pretrained networks need them.
        import timm
        from torchvision.models import EfficientNet_B0_Weights

        self.class_names = [*EfficientNet_B0_Weights.DEFAULT.meta["categories"]]
        self.image_shape = (3, settings.size, settings.size)
        self.train_size = len(self.class_names)
        self._trim = settings.trim
        config = timm.get_pretrained_cfg(settings.backbone)
        assert config is not None
        super().__init__(mean=[*config.mean], std=[*config.std], val_size=0, eval_batch_size=_BATCH_SIZE)

    def preparation(self, invert: object = "auto") -> Preparation:
        """Return the conversion of any picture to what the network takes."""
        return Preparation(self.image_shape, cut_out=False, photograph=True, trim=self._trim)
