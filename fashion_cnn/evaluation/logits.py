"""What a network says of many images, some of them at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

# Logits `(B, num_classes)`, on any device, of images `(B, C, H, W)` uint8 on the CPU.
Classify = Callable[[Tensor], Tensor]


# Not in inference mode: `classify` may move a network, whose buffers could not be loaded into afterwards.
@torch.no_grad()
def all_logits(classify: Classify, images: Tensor, batch_size: int) -> Tensor:
    """The logits `(N, num_classes)`, float32 on the CPU, of images `(N, C, H, W)` uint8."""
    return torch.cat([classify(batch).float().cpu() for batch in images.split(batch_size)])
