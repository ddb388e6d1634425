"""Wide residual networks: Zagoruyko and Komodakis, "Wide Residual Networks", 2016 (arXiv 1605.07146)."""

from torch import Tensor, nn

from fashion_cnn.errors import UserError
from fashion_cnn.models.dropout import Dropout


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
