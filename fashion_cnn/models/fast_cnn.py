"""A network for the least training time on a CPU: few multiplications, all behind the first pooling."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fashion_cnn.errors import UserError


class FastCNN(nn.Module):
    """A frozen convolution that whitens 3x3 patches, then for each of `widths` a pooling and a 3x3 convolution.

    Images `(B, C, H, W)` in, logits `(B, num_classes)` out. H and W must be at least 2 ** number of widths.
    whitened: channels of the frozen convolution, even and at most 18 for each channel of the images.
    widths: multiples of 16 suit the vector units.

    The classifier sees mean and maximum of the last convolution's pixels.
    """

    def __init__(self, *, in_channels: int, num_classes: int, whitened: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.whitening = Whitening(in_channels, whitened)
        layers: list[nn.Module] = []
        channels = whitened
        for width in widths:
            # Pooling before the activation gives the same numbers, from a quarter of the work.
            layers += [nn.MaxPool2d(2), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            channels = width
        self.trunk = nn.Sequential(*layers, nn.ReLU(inplace=True))
        self.classifier = nn.Linear(2 * channels, num_classes)

    def initialise(self, images: Tensor) -> None:
        """Whiten patches as they are in these normalised images `(N, C, H, W)`; without effect the second time."""
        self.whitening.fit(images)

    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees: `(B, 2 * widths[-1])`."""
        pixels = self.trunk(self.whitening(images))
        return torch.cat([pixels.mean(dim=(2, 3)), pixels.amax(dim=(2, 3))], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


class Whitening(nn.Module):
    """A convolution whose outputs on 3x3 patches are uncorrelated and of unit variance, and each output's negative.

    Images `(B, in_channels, H, W)` in, `(B, channels, H, W)` out; nothing of it is trained, so nothing is computed
    for it on the way back. The directions of the largest variance are kept. Until `fit`, they are random. From
    tysam-code's hlb-CIFAR10, 2023, by way of Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024
    (arXiv 2404.00498).
    """

    weight: Tensor
    fitted: Tensor

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        if channels % 2 or not 2 <= channels <= 18 * in_channels:
            raise UserError(
                f"model.network.whitened={channels} is not possible: give an even number, 2 to {18 * in_channels}."
            )
        directions = nn.init.orthogonal_(torch.empty(channels // 2, in_channels * 9)).view(-1, in_channels, 3, 3)
        self.register_buffer("weight", torch.cat([directions, -directions]))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, images: Tensor, smallest_variance: float = 0.01) -> None:
        """Find the directions in images `(N, in_channels, H, W)`. `smallest_variance` keeps faint noise faint."""
        if self.fitted:
            return
        patches = functional.unfold(images.float(), 3, padding=1).transpose(1, 2).flatten(0, 1)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        chosen = (directions / (variances + smallest_variance).sqrt()).T.flip(0)[: len(self.weight) // 2]
        self.weight.copy_(torch.cat([chosen, -chosen]).view_as(self.weight))
        self.fitted.fill_(True)

    def forward(self, images: Tensor) -> Tensor:
        return functional.conv2d(images, self.weight, padding=1)
