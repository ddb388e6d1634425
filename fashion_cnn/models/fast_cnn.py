"""A network for the shortest training time on a CPU: few multiply-adds, all after the first pooling."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fashion_cnn.errors import UserError
from fashion_cnn.models.convolution import AMXConv2d
from fashion_cnn.models.hardware import has_onednn
from fashion_cnn.models.layers import is_traced, mean_of_pixels


class FastCNN(nn.Module):
    """A frozen whitening convolution, then max pooling and a 3x3 convolution for each of `widths`.

    The classifier reads the mean and the maximum over the pixels of the last feature map. Images `(B, C, H, W)` in,
    logits `(B, num_classes)` out; H and W must be at least `2 ** len(widths)`.

    Args:
        in_channels: channels C of the images.
        num_classes: number of logits.
        whitened: channels of the whitening convolution, even and at most `18 * in_channels`.
        widths: channels of the convolutions; multiples of 16 suit the vector units of a CPU.
        pool_first: whether the poolings stand before the normalisation, which then has a quarter of the work. False for
            runs of older versions.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        whitened: int,
        widths: Sequence[int],
        pool_first: bool = False,
    ) -> None:
        super().__init__()
        self.whitening = Whitening(in_channels, whitened)
        layers: list[nn.Module] = []
        channels = whitened
        for width in widths:
            # The first pooling is done with the whitening.
            pooling = nn.MaxPool2d(2) if layers else nn.Identity()
            layers.insert(len(layers) - 1 if pool_first else len(layers), pooling)
            # ReLU is monotonic: after the pooling it gives the same values for a quarter of the work.
            layers += [nn.ReLU(inplace=True), AMXConv2d(channels, width, bias=False)]
            layers.append(nn.BatchNorm2d(width))
            channels = width
        self.trunk = nn.Sequential(*layers, nn.ReLU(inplace=True))
        self.classifier = nn.Linear(2 * channels, num_classes)

    def initialise(self, images: Tensor) -> None:
        """Fit the whitening to normalised training images `(N, C, H, W)`; does nothing the second time."""
        self.whitening.fit(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)`."""
        pixels = self.trunk(self.whitening.whiten_and_pool(images))
        # The backward pass of amax, which divides the gradient among equal maxima, takes longer.
        maximum = functional.max_pool2d(pixels, pixels.shape[2:])
        return self.classifier(torch.cat([mean_of_pixels(pixels), maximum.flatten(1)], dim=1))


class Whitening(nn.Module):
    """A frozen 3x3 convolution whose outputs are uncorrelated and of unit variance, and the negative of each output.

    The filters are the principal components of image patches with the largest variance, scaled by its inverse root.
    Before `fit` they are random. They are buffers, so the backward pass ends before this layer. The layer is described
    in Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (arXiv 2404.00498), and was introduced by
    tysam-code, hlb-CIFAR10, 2023.

    Args:
        in_channels: channels of the images `(B, in_channels, H, W)`.
        channels: channels of the output `(B, channels, H, W)`, even and at most `18 * in_channels`.
    """

    weight: Tensor
    fitted: Tensor

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        if channels % 2 or not 2 <= channels <= 18 * in_channels:
            raise UserError(
                f"model.network.whitened={channels} is not possible: give an even number, 2 to {18 * in_channels}."
            )
        filters = nn.init.orthogonal_(torch.empty(channels // 2, in_channels * 9)).view(-1, in_channels, 3, 3)
        self.register_buffer("weight", torch.cat([filters, -filters]))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, images: Tensor, smallest_variance: float = 0.01) -> None:
        """Compute the filters from images; does nothing the second time.

        Args:
            images: normalised images `(N, in_channels, H, W)`.
            smallest_variance: constant added to each variance, so that components of mere noise are not amplified.
        """
        if self.fitted:
            return
        patches = functional.unfold(images.float(), 3, padding=1).transpose(1, 2).flatten(0, 1)
        variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
        # eigh sorts by ascending variance.
        filters = (components / (variances + smallest_variance).sqrt()).T.flip(0)[: len(self.weight) // 2]
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))
        self.fitted.fill_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Return the whitened images `(B, channels, H, W)`."""
        return functional.conv2d(images, self.weight, padding=1)

    def whiten_and_pool(self, images: Tensor) -> Tensor:
        """Return the whitened images after a 2x2 max pooling `(B, channels, H // 2, W // 2)`."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
        is_plain_call = not (images.requires_grad or is_traced())
        if is_plain_call and images.device.type == "cpu" and has_onednn(dtype):
            return _convolve_and_pool(images.to(dtype), self.weight.to(dtype))
        return functional.max_pool2d(self(images), 2)


@torch.no_grad()
def _convolve_and_pool(images: Tensor, weight: Tensor) -> Tensor:
    """3x3 convolution and 2x2 max pooling in the memory layout of oneDNN, without gradients.

    torch's own max pooling also writes the index of each maximum, and is not vectorised for 16 channels in bfloat16:
    together they take eight times as long.
    """
    with torch.autocast("cpu", enabled=False):
        whitened = functional.conv2d(images.contiguous().to_mkldnn(), weight.contiguous().to_mkldnn(), padding=1)
        pooled: Tensor = functional.max_pool2d(whitened, 2).to_dense()
    return pooled.contiguous(memory_format=torch.channels_last)
