"""Classification networks of torchvision, optionally pretrained, with a new classifier."""

from pathlib import Path
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from fashion_cnn.errors import UserError
from fashion_cnn.runs.damage import check_checkpoint

# In training these also return the logits of auxiliary classifiers.
_WITH_AUXILIARY_LOGITS = ("googlenet", "inception_v3")


class TorchvisionBackbone(nn.Module):
    """A classification network of torchvision whose last linear layer is replaced.

    Images `(B, C, H, W)` in, logits `(B, num_classes)` out. Grey images are repeated in three channels.

    Args:
        in_channels: channels C of the images, 1 or 3.
        num_classes: number of logits.
        name: name in `torchvision.models.list_models`, such as resnet18.
        weights: file of pretrained weights, a state dict as torchvision publishes them. It is read once, before the
            first step; a resumed or finished run does not need it.
        size: side in pixels to which images are resized first; None keeps their size.

    Raises:
        UserError: if the name is unknown, the network has no linear layer or `in_channels` is neither 1 nor 3.
    """

    loaded: Tensor

    def __init__(
        self, *, in_channels: int, num_classes: int, name: str, weights: str | None = None, size: int | None = None
    ) -> None:
        super().__init__()
        # Imported here: no other network needs it, and it is slow.
        import torchvision

        listed = torchvision.models.list_models(torchvision.models)
        names = [candidate for candidate in listed if candidate not in _WITH_AUXILIARY_LOGITS]
        if name not in names:
            raise UserError(f"model.network.name={name} is not a network of torchvision: {', '.join(names)}.")
        if in_channels not in (1, 3):
            raise UserError(f"model=torchvision takes images of 1 or 3 channels, not of {in_channels}.")
        self.weights, self.size = weights, size
        self.backbone = torchvision.models.get_model(name, weights=None)
        self.head, width = _last_linear(self.backbone)
        self.backbone.set_submodule(self.head, nn.Identity())
        self.classifier = nn.Linear(width, num_classes)
        # In the checkpoint, so that a resumed or finished run does not read the file again.
        self.register_buffer("loaded", torch.tensor(weights is None))

    def initialise(self, images: Tensor) -> None:
        """Load the pretrained weights; does nothing the second time.

        Args:
            images: not used.

        Raises:
            UserError: if the file cannot be read or belongs to another network.
        """
        if self.loaded:
            return
        assert self.weights is not None
        path = Path(self.weights).expanduser()
        try:
            if path.exists() and not path.is_file():
                raise ValueError("it is not a regular file")
            if is_zipfile(path):  # torch also reads its format before version 1.6, which torchvision still publishes.
                check_checkpoint(path)
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises errors of many types
            raise UserError(
                f"model.network.weights={path} cannot be read ({str(error).splitlines()[0]}): "
                "give a file of a state dict, as torchvision publishes them."
            ) from error
        body = {key: value for key, value in state_dict.items() if not key.startswith(f"{self.head}.")}
        try:
            self.backbone.load_state_dict(body)
        except RuntimeError as error:
            raise UserError(
                f"model.network.weights={path} belongs to another network than {type(self.backbone).__name__}: "
                f"{str(error).splitlines()[1].strip()[:200]}"
            ) from error
        self.loaded.fill_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)`."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.size is not None:
            images = nn.functional.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.classifier(self.backbone(images))


def _last_linear(backbone: nn.Module) -> tuple[str, int]:
    """The name and the input width of the last linear layer, which computes the logits."""
    linear = [(name, layer.in_features) for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UserError(f"{type(backbone).__name__} has no linear layer: choose another network.")
    return linear[-1]
