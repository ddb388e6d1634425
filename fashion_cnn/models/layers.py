"""A linear layer that computes in float32, dropout and a mean that are fast on a CPU, predicates on layer types."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_DROPOUT_LEVELS = 2**16


def is_nonlinearity(layer: nn.Module) -> bool:
    """Return whether a layer is one of torch's activation functions."""
    is_activation = type(layer).__module__ == "torch.nn.modules.activation"
    return is_activation and not isinstance(layer, nn.MultiheadAttention)


def is_traced() -> bool:
    """Return whether the present call is compiled or exported, and not computed."""
    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined]


class Float32Linear(nn.Linear):
    """`nn.Linear` that computes in float32 whatever the precision of the layers before it.

    With the eight significant bits of bfloat16, the two largest logits of one image in a thousand are equal, and the
    lower class is predicted.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map features `(B, in_features)` of any precision to `(B, out_features)`, float32 or float64."""
        return float32_linear(input, self.weight, self.bias)


def float32_linear(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`functional.linear` in float32 or, for float64 features, in float64; autocast does not apply."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    operands = features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return functional.linear(*operands)  # An exporter would have to translate a context.
    with torch.autocast(device, enabled=False):
        return functional.linear(*operands)


def compute_in_float32(layer: nn.Linear) -> None:
    """Make a linear layer a `Float32Linear` in place; its parameters and hooks stay. A subclass is left alone."""
    if type(layer) is nn.Linear:
        layer.__class__ = Float32Linear


class Dropout(nn.Dropout):
    """`nn.Dropout` that draws 16 random bits an element on a CPU, where `p` is rounded to a multiple of 1/65536.

    There `nn.Dropout` draws one random number after the other, which took a third of the training of `model=baseline`.
    On other devices it is used as it is.

    Args:
        p: probability of setting an element to zero.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Set elements to zero with probability `p` and scale the others by 1 / (1 - `p`), in training only."""
        if not self.training or self.p in (0, 1) or input.device.type != "cpu":
            return functional.dropout(input, self.p, self.training)
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        # In the memory layout of the input: the product across layouts takes ten times as long.
        bits = words.view(torch.int16)[: input.numel()].as_strided(input.shape, torch.empty_like(input).stride())
        threshold = round(self.p * _DROPOUT_LEVELS)
        # The in-place comparison stays int16, whose conversion to a float is vectorised; that of a bool is not.
        mask = bits.ge_(threshold - _DROPOUT_LEVELS // 2).to(input.dtype)
        return input * mask.mul_(_DROPOUT_LEVELS / (_DROPOUT_LEVELS - threshold))


def mean_of_pixels(features: Tensor) -> Tensor:
    """Return the mean `(B, C)` of feature maps `(B, C, H, W)`.

    The same as `features.mean(dim=(2, 3))`, whose gradient has another memory layout on the CPU: the layers before it
    then take twice as long.
    """
    return functional.avg_pool2d(features, features.shape[2:]).flatten(1)
