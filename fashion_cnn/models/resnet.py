"""Residual networks.

`ResNet` is small and lowers the resolution early, since arithmetic is what a CPU runs short of. `WideResNet` follows
Zagoruyko and Komodakis, "Wide Residual Networks", 2016 (arXiv 1605.07146).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from fashion_cnn.errors import UserError
from fashion_cnn.models.layers import Dropout

Choice = TypeVar("Choice")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "silu": partial(nn.SiLU, inplace=True),
    "gelu": nn.GELU,
}
NORMALISATIONS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(math.gcd(8, channels), channels),
    "none": lambda _: nn.Identity(),
}


class ResNet(nn.Module):
    """A stem at full resolution, then stages of residual blocks, each behind a 2x2 max pooling.

    stem: channels of each convolution before the first pooling. widths: channels of each stage; multiples of 16 suit
    the vector units. depths: residual blocks of each stage. dropout: before the classifier. activation: relu, silu or
    gelu. normalisation: batch, group (8 groups) or none. residual: whether a block's input is added to its output.
    Images `(B, C, H, W)` in, logits `(B, num_classes)` out. H and W must be at least
    2 ** number of stages. Raises UserError for widths and depths that do not agree, and for an activation or a
    normalisation that it does not know.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        stem: Sequence[int],
        widths: Sequence[int],
        depths: Sequence[int],
        dropout: float = 0.0,
        activation: str = "relu",
        normalisation: str = "batch",
        residual: bool = True,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths):
            raise UserError(
                f"model.network.widths={list(widths)} and depths={list(depths)} do not agree: give each stage a width "
                "and a depth."
            )
        active = _chosen("activation", activation, ACTIVATIONS)
        convolution = partial(Convolution, normalised=_chosen("normalisation", normalisation, NORMALISATIONS))
        layers: list[nn.Module] = []
        channels = in_channels
        for width in stem:
            layers += [convolution(channels, width), active()]
            channels = width
        for width, depth in zip(widths, depths, strict=True):
            # Pooling comes first, so that the widening convolution works at the lower resolution.
            # Before an activation that only rises it gives the same numbers, and leaves it a quarter of the work.
            behind_an_activation = bool(layers) and not isinstance(layers[-1], ResidualBlock)
            layers.insert(len(layers) - behind_an_activation, nn.MaxPool2d(2))
            layers += [convolution(channels, width), active()]
            layers += [ResidualBlock(width, convolution, active, residual=residual) for _ in range(depth)]
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees: `(B, widths[-1])`, averaged over the last stage's pixels."""
        return self.trunk(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.features(images)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, `(B, width, H, W)` in and out. He et al., 2015."""

    def __init__(
        self,
        width: int,
        convolution: Callable[[int, int], "Convolution"],
        active: Callable[[], nn.Module],
        *,
        residual: bool = True,
    ) -> None:
        super().__init__()
        first, second = convolution(width, width), convolution(width, width)
        self.branch = nn.Sequential(first, active(), second)
        self.activation = active()
        self.residual = residual
        if residual:
            # Each block starts as the identity (Goyal et al., 2017), which steadies a high learning rate.
            second.start_at_zero()

    def forward(self, images: Tensor) -> Tensor:
        branch = self.branch(images)
        return self.activation(images + branch if self.residual else branch)


class Convolution(nn.Sequential):
    """A 3x3 convolution that keeps the size, normalised."""

    def __init__(self, in_channels: int, out_channels: int, *, normalised: Callable[[int], nn.Module]) -> None:
        normalisation = normalised(out_channels)
        bias = isinstance(normalisation, nn.Identity)
        super().__init__(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias), normalisation)

    def start_at_zero(self) -> None:
        """Answer every image with zeros, until trained."""
        for parameter in self[0 if isinstance(self[1], nn.Identity) else 1].parameters():
            nn.init.zeros_(parameter)


def _chosen(what: str, name: str, choices: Mapping[str, Choice]) -> Choice:
    if name not in choices:
        raise UserError(f"model.network.{what}={name} is not known: choose one of {', '.join(choices)}.")
    return choices[name]


class WideResNet(nn.Module):
    """WRN-depth-widen_factor with pre-activation blocks, three stages of 16, 32 and 64 x `widen_factor`.

    depth: 6n + 4 convolutions. dropout: between the two convolutions of a block.
    Images `(B, C, H, W)` in, logits `(B, num_classes)` out. WRN-28-10 has 36.5 M parameters.
    """

    def __init__(
        self, *, in_channels: int, num_classes: int, depth: int, widen_factor: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise UserError(f"depth={depth} is not 6n + 4: give 10, 16, 22, 28 …")
        layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)]
        channels = 16
        for stage, width in enumerate((16 * widen_factor, 32 * widen_factor, 64 * widen_factor)):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(PreActivationBlock(channels, width, stride, dropout))
                channels = width
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.trunk = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees: `(B, 64 * widen_factor)`, averaged over the last stage's pixels."""
        return self.trunk(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


class PreActivationBlock(nn.Module):
    """Normalise, activate, convolve, twice: `(B, in, H, W)` to `(B, out, H / stride, W / stride)`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True))
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )
        self.same = in_channels == out_channels and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity() if self.same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        activated = self.activate(images)
        # The paper's projection sees the activated input, the identity the untouched one.
        shortcut: Tensor = self.shortcut(images if self.same else activated)
        return shortcut + self.branch(activated)
