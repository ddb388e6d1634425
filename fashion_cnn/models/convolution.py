"""A 3x3 convolution whose weight gradient is computed faster on processors with AMX."""

from typing import Any

import torch
from torch import Tensor, nn

from fashion_cnn.models.hardware import has_amx
from fashion_cnn.models.layers import is_traced

# Pixels of a packed row, at most. Longer ones gained nothing more.
_ROW_PIXELS = 64
# With fewer images in a row, or fewer channels, packing took as long as it saved.
_MIN_IMAGES = 8
_MIN_CHANNELS = 32


class AMXConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 that keeps height and width, in place of `nn.Conv2d` with the same arguments.

    The weight gradient is a sum over the pixels of the feature maps. oneDNN sums a row of one image at a time, padded
    to the 32 pixels of an AMX tile: of a row of 3 pixels, nine tenths of the arithmetic are padding. In training in
    bfloat16 on such a processor, this layer packs the rows of several images into one before that sum
    (`packed_weight_gradient`). Elsewhere it computes as `nn.Conv2d` does.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        bias: whether to add a learned number to each channel.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map feature maps `(B, in_channels, H, W)` to `(B, out_channels, H, W)`."""
        if not self._packs(input):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.bfloat16()
        output: Tensor = _PackedGradient.apply(input.bfloat16(), self.weight.bfloat16(), bias)
        return output

    def _packs(self, input: Tensor) -> bool:
        """Return whether the weight gradient is needed, and faster if images are packed."""
        if is_traced() or not (torch.is_grad_enabled() and self.weight.requires_grad) or input.device.type != "cpu":
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        return dtype == torch.bfloat16 and has_amx() and images_per_row(input.shape, self.weight.shape) > 1


class _PackedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        return torch.conv2d(images, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        gradient, (images, weight) = gradients[0], ctx.saved_tensors
        for_images, for_weight, for_bias = ctx.needs_input_grad
        return (
            _gradients(gradient, images, weight, for_images=True)[0] if for_images else None,
            packed_weight_gradient(gradient, images, weight) if for_weight else None,
            gradient.sum((0, 2, 3)) if for_bias else None,
        )


def images_per_row(images_shape: torch.Size, weight_shape: torch.Size) -> int:
    """Return the number of images whose rows are packed into one: a power of two, 1 if packing does not pay.

    Args:
        images_shape: (B, in_channels, H, W), the input of the convolution.
        weight_shape: (out_channels, in_channels, 3, 3).
    """
    batch, width = images_shape[0], images_shape[3]
    fitting = max(1, _ROW_PIXELS // (width + 1))
    # The largest power of two that fits, and the largest that divides the batch.
    number = min(1 << (fitting.bit_length() - 1), batch & -batch)
    return number if number >= _MIN_IMAGES and min(weight_shape[:2]) >= _MIN_CHANNELS else 1


def packed_weight_gradient(gradient: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of a loss with respect to the weight of a 3x3 convolution with padding 1.

    Args:
        gradient: gradient with respect to the output `(B, out_channels, H, W)`.
        images: input of the convolution `(B, in_channels, H, W)`.
        weight: weight `(out_channels, in_channels, 3, 3)`, which gives the result its shape and type.
    """
    number = images_per_row(images.shape, weight.shape)
    return _gradients(_pack_rows(gradient, number), _pack_rows(images, number), weight, for_images=False)[1]


def _gradients(gradient: Tensor, images: Tensor, weight: Tensor, *, for_images: bool) -> tuple[Tensor, Tensor]:
    """Return the gradient with respect to the images or else the weight; the other of the two is undefined."""
    ones, wanted = [1, 1], [for_images, not for_images, False]
    gradients = torch.ops.aten.convolution_backward(
        gradient, images, weight, None, ones, ones, ones, False, [0, 0], 1, wanted
    )
    return gradients[0], gradients[1]


def _pack_rows(images: Tensor, number: int) -> Tensor:
    """Return `(B / number, C, H, number * (W + 1))`: images side by side, each with a column of zeros at its right.

    The column is the padding of both of its neighbours, so the sum over all pixels stays the same.
    """
    batch, channels, height, width = images.shape
    packed = images.new_empty(batch // number, height, number, width + 1, channels)
    packed[:, :, :, width] = 0
    rows = images.permute(0, 2, 3, 1).reshape(batch // number, number, height, width, channels)
    packed[:, :, :, :width] = rows.transpose(1, 2)
    return packed.view(batch // number, height, number * (width + 1), channels).permute(0, 3, 1, 2)
