"""Layers that several networks share, and predicates on layer types."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_DROPOUT_LEVELS = 2**16


def is_nonlinearity(layer: nn.Module) -> bool:
    """Whether it is one of torch's activation functions."""
    in_the_module = type(layer).__module__ == "torch.nn.modules.activation"
    return in_the_module and not isinstance(layer, nn.MultiheadAttention)


class Dropout(nn.Dropout):
    """`nn.Dropout` with 16 random bits an element in place of a whole random number, so `p` counts in steps of 1/65536.

    torch draws its numbers one after the other there: of the training of `model=baseline` they took a third. On other
    devices it is `nn.Dropout`.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1) or input.device.type != "cpu":
            return functional.dropout(input, self.p, self.training)
        drawn = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        # In the order in which the input lies in memory: across it, the product takes ten times as long.
        bits = drawn.view(torch.int16)[: input.numel()].as_strided(input.shape, torch.empty_like(input).stride())
        dropped = round(self.p * _DROPOUT_LEVELS)
        # The comparison in place stays an integer of 16 bits, which is vectorised where a bool's conversion is not.
        kept = bits.ge_(dropped - _DROPOUT_LEVELS // 2).to(input.dtype)
        return input * kept.mul_(_DROPOUT_LEVELS / (_DROPOUT_LEVELS - dropped))
