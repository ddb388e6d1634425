"""Inference speed of networks: throughput in batches, and latency of one image."""

import statistics
import time
from contextlib import nullcontext

import torch
from torch import Tensor

from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.hardware import fast_precision


def images_per_second(module: ImageClassifier, batch: int, batches: int = 20) -> float:
    """Measure images per second in batches of normalised images, in the training precision of this machine."""
    images = torch.randn(batch, *module.image_shape)
    return batch / statistics.median(_seconds(module, images, batches))


def latency(module: ImageClassifier, times: int = 200) -> float:
    """Measure the median seconds from one normalised image to its logits."""
    return statistics.median(_seconds(module, torch.randn(1, *module.image_shape), times))


@torch.inference_mode()
def _seconds(module: ImageClassifier, images: Tensor, times: int) -> list[float]:
    module.eval()
    bf16 = fast_precision("cpu") == "bf16-mixed"
    seconds = []
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        for _ in range(times + max(3, times // 10)):
            started = time.perf_counter()
            module(images)
            seconds.append(time.perf_counter() - started)
    return seconds[-times:]
