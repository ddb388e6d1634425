"""Residual networks: a small ResNet for training on a CPU, and Wide ResNet."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional

from fashion_cnn.errors import UserError
from fashion_cnn.models.convolution import AMXConv2d
from fashion_cnn.models.layers import Dropout, mean_of_pixels

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
    """A stem at full resolution, then stages of residual blocks, each after a 2x2 max pooling.

    He et al., "Deep Residual Learning for Image Recognition", 2015 (arXiv 1512.03385), with an early reduction of the
    resolution, which saves multiply-adds. Images `(B, C, H, W)` in, logits `(B, num_classes)` out; H and W must be at
    least `2 ** len(widths)`.

    Args:
        in_channels: channels C of the images.
        num_classes: number of logits.
        stem: channels of each convolution before the first pooling.
        widths: channels of each stage; multiples of 16 suit the vector units of a CPU.
        depths: residual blocks of each stage.
        dropout: probability of dropping a feature before the classifier.
        activation: relu, silu or gelu.
        normalisation: batch, group (8 groups) or none.
        residual: whether a block adds its input to its output.
        pool_first: whether a pooling stands before the normalisation of the convolution that it follows, which then has
            a quarter of the work. False for runs of older versions.
        strided_stem: whether the first convolution is a 4x4 convolution of stride 2, in place of a 3x3 convolution and
            of the pooling after the stem. False for runs of older versions.
        norm_block_output: whether the second convolution of a block is normalised, too. Without it a block takes less
            time; it starts as the identity either way.

    Raises:
        UserError: if `widths` and `depths` differ in length, an activation or a normalisation is unknown, or
            `strided_stem` is set without a convolution in the stem.
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
        pool_first: bool = False,
        strided_stem: bool = False,
        norm_block_output: bool = True,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths):
            raise UserError(
                f"model.network.widths={list(widths)} and depths={list(depths)} differ in length: "
                "give each stage a width and a depth."
            )
        if strided_stem and not stem:
            raise UserError("model.network.strided_stem=true needs a convolution in model.network.stem: it has none.")
        make_activation = _choose("activation", activation, ACTIVATIONS)
        convolution = partial(Convolution, make_norm=_choose("normalisation", normalisation, NORMALISATIONS))
        last_of_block = convolution if norm_block_output else partial(convolution, make_norm=NORMALISATIONS["none"])
        layers: list[nn.Module] = []
        channels = in_channels
        for width in stem:
            layers += [convolution(channels, width, halves=strided_stem and not layers), make_activation()]
            channels = width
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage or not strided_stem:
                # Pool first: the widening convolution then works at the lower resolution. Pool before a preceding
                # activation: ReLU is monotonic and gives the same values for a quarter of the work.
                follows_activation = layers and not isinstance(layers[-1], ResidualBlock)
                activation_layers = [layers.pop()] if follows_activation else []
                if pool_first and layers and isinstance(layers[-1], Convolution):
                    layers[-1].pools = True
                else:
                    layers.append(nn.MaxPool2d(2))
                layers += activation_layers
            layers += [convolution(channels, width), make_activation()]
            for _ in range(depth):
                first, second = convolution(width, width), last_of_block(width, width)
                layers.append(ResidualBlock(first, second, make_activation, residual=residual))
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)`."""
        return self.classifier(self.dropout(mean_of_pixels(self.trunk(images))))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, `(B, C, H, W)` in and out.

    Args:
        first: the first convolution, of C channels in and out.
        second: the second one.
        make_activation: factory of an activation.
        residual: whether to add the input to the output.
    """

    def __init__(
        self,
        first: "Convolution",
        second: "Convolution",
        make_activation: Callable[[], nn.Module],
        *,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(first, make_activation(), second)
        self.activation = make_activation()
        self.residual = residual
        if residual:
            # Each block starts as the identity, which stabilises a high learning rate: Goyal et al., "Accurate, Large
            # Minibatch SGD", 2017 (arXiv 1706.02677), section 5.1.
            second.zero_output()

    def forward(self, images: Tensor) -> Tensor:
        """Return feature maps `(B, C, H, W)`."""
        branch = self.branch(images)
        return self.activation(images + branch if self.residual else branch)


class Convolution(nn.Sequential):
    """A 3x3 convolution and its normalisation.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        make_norm: factory of the normalisation from its channels; the convolution has a bias if it is `nn.Identity`.
        halves: whether it is a 4x4 convolution of stride 2 instead, which halves height and width.
    """

    # Whether a 2x2 max pooling stands between them. It is no module, so that the keys of the state dict stay the same.
    pools = False

    def __init__(
        self, in_channels: int, out_channels: int, *, make_norm: Callable[[int], nn.Module], halves: bool = False
    ) -> None:
        norm = make_norm(out_channels)
        bias = isinstance(norm, nn.Identity)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=bias)
            if halves
            else AMXConv2d(in_channels, out_channels, bias=bias),
            norm,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return feature maps `(B, out_channels, H, W)`, of half the height and width if `pools`."""
        convolution, norm = self
        features = convolution(images)
        return norm(functional.max_pool2d(features, 2) if self.pools else features)

    def zero_output(self) -> None:
        """Set the last parameters to zero, so that the output is zero until training changes them."""
        for parameter in self[0 if isinstance(self[1], nn.Identity) else 1].parameters():
            nn.init.zeros_(parameter)


def _choose(option: str, name: str, choices: Mapping[str, Choice]) -> Choice:
    if name not in choices:
        raise UserError(f"model.network.{option}={name} is unknown: choose one of {', '.join(choices)}.")
    return choices[name]


class WideResNet(nn.Module):
    """WRN-`depth`-`widen_factor`: three stages of pre-activation blocks of 16, 32 and 64 x `widen_factor` channels.

    Zagoruyko and Komodakis, "Wide Residual Networks", 2016 (arXiv 1605.07146). WRN-28-10 has 36.5 million parameters.
    Images `(B, C, H, W)` in, logits `(B, num_classes)` out.

    Args:
        in_channels: channels C of the images.
        num_classes: number of logits.
        depth: number of convolutions, 6n + 4 for n blocks a stage.
        widen_factor: multiplier of the channels.
        dropout: probability of dropping an element between the two convolutions of a block.

    Raises:
        UserError: if `depth` is not 6n + 4.
    """

    def __init__(
        self, *, in_channels: int, num_classes: int, depth: int, widen_factor: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 4, 6)
        if remainder or blocks < 1:
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

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)`."""
        return self.classifier(mean_of_pixels(self.trunk(images)))


class PreActivationBlock(nn.Module):
    """Normalisation, activation and convolution, twice, beside a shortcut.

    Args:
        in_channels: channels of the input `(B, in_channels, H, W)`.
        out_channels: channels of the output `(B, out_channels, H / stride, W / stride)`.
        stride: stride of the first convolution and of the shortcut.
        dropout: probability of dropping an element between the convolutions.
    """

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
        self.same_shape = in_channels == out_channels and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity() if self.same_shape else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return feature maps `(B, out_channels, H / stride, W / stride)`."""
        activated = self.activate(images)
        # In the paper a projection reads the activated input, the identity the input itself.
        shortcut: Tensor = self.shortcut(images if self.same_shape else activated)
        return shortcut + self.branch(activated)
