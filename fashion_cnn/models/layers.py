"""What kind of layer a layer is."""

from torch import nn


def is_nonlinearity(layer: nn.Module) -> bool:
    """Whether it is one of torch's activation functions."""
    return type(layer).__module__ == "torch.nn.modules.activation"
