"""Grad-CAM: where the features lie that speak for a class."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fashion_cnn.errors import UserError
from fashion_cnn.models.layers import is_nonlinearity


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
