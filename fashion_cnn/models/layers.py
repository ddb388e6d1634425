"""What kind of layer a layer is."""

from torch import nn


def is_nonlinearity(layer: nn.Module) -> bool:
    """Whether it is one of torch's activation functions."""
    in_the_module = type(layer).__module__ == "torch.nn.modules.activation"
    return in_the_module and not isinstance(layer, nn.MultiheadAttention)
