"""A network with ImageNet weights as the embedding of a product search, beside a description of the item's colours."""

from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import require
from fashion_cnn.inference.network import EmbeddingNetwork, NetworkOutput
from fashion_cnn.models import ImageClassifier, TimmBackbone
from fashion_cnn.models.backbones import fold_batch_norm, packaged_weights
from fashion_cnn.models.hardware import select_device
from fashion_cnn.pictures import Preparation
from fashion_cnn.pictures.colour import has_item
from fashion_cnn.pictures.photographs import (
    COLOUR_COLUMN,
    PretrainedSettings,
    add_patchworks,
    describe_photographs,
    embedding_size,
    main_colours,
)
from fashion_cnn.runs import Run

_BATCH_SIZE = 32


class PretrainedNetwork(EmbeddingNetwork):
    """EfficientNet-Lite0 with its packaged ImageNet weights; classes are those of ImageNet.

    An embedding joins the network's features with the colour histogram of the item, see `describe_photographs`.

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
        fold_batch_norm(network.backbone.eval())
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
        return embedding_size(super().dimensions, self.pretrained)

    @property
    def identity(self) -> str:
        """A hash of the settings: the weights and the preparation have their checksum and version among them."""
        return self.pretrained.identity

    def outputs(self, images: Tensor) -> NetworkOutput:
        """Return logits and embeddings of prepared images `(N, C, H, W)` uint8, in one pass."""
        photographs = images.cpu().numpy()
        pictures, changed = add_patchworks(photographs, self.pretrained)
        output = super().outputs(torch.from_numpy(pictures))
        embeddings = describe_photographs(output.embeddings.numpy(), changed, photographs, self.pretrained)
        return NetworkOutput(output.logits[: len(images)], torch.from_numpy(embeddings))

    def finds_item(self, image: ArrayLike) -> bool:
        """Return whether a prepared photograph `(3, H, W)` shows an item on a plain background."""
        return has_item(np.asarray(image))

    def measure_columns(self, images: ArrayLike) -> dict[str, list[str]]:
        """Return the main colour of each prepared image `(N, C, H, W)` uint8."""
        return main_colours(images)


class _Photographs(ImageDataModule):
    """Photographs of the classes of ImageNet, of which there is none here: classes and normalisation alone."""

    def __init__(self, settings: PretrainedSettings) -> None:
        # Imported here because they are slow, and only pretrained networks need them.
        import timm
        from torchvision.models import EfficientNet_B0_Weights

        self.class_names = [*EfficientNet_B0_Weights.DEFAULT.meta["categories"]]
        self.image_shape = (3, settings.size, settings.size)
        self.train_size = len(self.class_names)
        self._preparation = settings.preparation
        config = timm.get_pretrained_cfg(settings.backbone)
        assert config is not None
        super().__init__(mean=[*config.mean], std=[*config.std], val_size=0, eval_batch_size=_BATCH_SIZE)

    def preparation(self, invert: object = "auto") -> Preparation:
        """Return the conversion of any picture to what the network takes."""
        return self._preparation
