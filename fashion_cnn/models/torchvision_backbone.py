"""A network of torchvision's, such as those pretrained on ImageNet, with a classifier of its own."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fashion_cnn.errors import UserError

# While they train, they give the logits of auxiliary classifiers too.
_WITH_HELPERS = ("googlenet", "inception_v3")


class TorchvisionBackbone(nn.Module):
    """One of torchvision's classification networks, its last linear layer replaced.

    name: as `torchvision.models.list_models` has it, such as resnet18. weights: a file of pretrained weights (a state
    dict as torchvision publishes them), read once before the first step; a finished run needs it no more. size: of the
    sides in pixels that images are scaled to first; None takes them as they are.
    Images `(B, C, H, W)` in, C being 1 (shown as three equal channels) or 3; logits `(B, num_classes)` out.
    Raises UserError for a name or a file that is none.
    """

    loaded: Tensor

    def __init__(
        self, *, in_channels: int, num_classes: int, name: str, weights: str | None = None, size: int | None = None
    ) -> None:
        super().__init__()
        # Here, since no other network needs it.
        import torchvision

        known = [one for one in torchvision.models.list_models(torchvision.models) if one not in _WITH_HELPERS]
        if name not in known:
            raise UserError(f"model.network.name={name} is none of torchvision's networks: {', '.join(known)}.")
        if in_channels not in (1, 3):
            raise UserError(f"model=torchvision takes images of 1 or 3 channels, not of {in_channels}.")
        self.weights, self.size = weights, size
        self.backbone = torchvision.models.get_model(name, weights=None)
        self.head, width = _last_linear(self.backbone)
        self.backbone.set_submodule(self.head, nn.Identity())
        self.classifier = nn.Linear(width, num_classes)
        # So that a resumed or finished run does not read them again.
        self.register_buffer("loaded", torch.tensor(weights is None))

    def initialise(self, images: Tensor) -> None:
        """Read the pretrained weights; without effect the second time."""
        if self.loaded:
            return
        assert self.weights is not None
        path = Path(self.weights).expanduser()
        try:
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises what its unpickler met
            raise UserError(
                f"model.network.weights={path} cannot be read ({str(error).splitlines()[0]}): name a file of a state "
                "dict, as torchvision publishes them."
            ) from error
        body = {key: value for key, value in state_dict.items() if not key.startswith(f"{self.head}.")}
        try:
            self.backbone.load_state_dict(body)
        except RuntimeError as error:
            raise UserError(
                f"model.network.weights={path} are those of another network than {type(self.backbone).__name__}: "
                f"{str(error).splitlines()[1].strip()[:200]}"
            ) from error
        self.loaded.fill_(True)

    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees: `(B, D)`."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.size is not None:
            images = nn.functional.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        features: Tensor = self.backbone(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def _last_linear(backbone: nn.Module) -> tuple[str, int]:
    """The name and the input width of the layer that gives the logits."""
    linear = [(name, layer.in_features) for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UserError(f"{type(backbone).__name__} ends in no linear layer: choose another network.")
    return linear[-1]
