"""A small residual network that lowers the resolution early: the arithmetic is what a CPU runs short of."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from fashion_cnn.errors import UserError
from fashion_cnn.models.dropout import Dropout

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
