"""Dropout that is fast on a CPU, and predicates on layer types."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_DROPOUT_LEVELS = 2**16


def is_nonlinearity(layer: nn.Module) -> bool:
    """Return whether a layer is one of torch's activation functions."""
    is_activation = type(layer).__module__ == "torch.nn.modules.activation"
    return is_activation and not isinstance(layer, nn.MultiheadAttention)


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
