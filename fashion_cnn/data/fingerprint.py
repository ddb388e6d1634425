"""Which images these are, in one line."""

import hashlib

from torch import Tensor


def fingerprint(images: Tensor, targets: Tensor) -> str:
    """The SHA-256 of images `(N, C, H, W)` uint8 and targets `(N,)`, in their order."""
    digest = hashlib.sha256(images.contiguous().numpy().data)
    digest.update(targets.contiguous().numpy().data)
    return digest.hexdigest()
