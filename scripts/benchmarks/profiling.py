"""Where a training step spends its time, by type of layer."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from omegaconf import DictConfig
from torch.profiler import ProfilerActivity, profile

from benchmarks.ways import EVALUATION, bare
from fashion_cnn.data import ImageDataModule

OPTIMIZER, CONVOLUTIONS = "optimizer", ("convolution, forward", "convolution, backward")
# The first pattern that an operation's name matches, or else that of the operation that called it, gives the type.
_TYPES = (
    (CONVOLUTIONS[1], r"convolution_backward"),
    (CONVOLUTIONS[0], r"conv"),
    ("normalisation", r"batch_norm|group_norm|layer_norm"),
    ("pooling", r"pool"),
    ("activation", r"relu|clamp_min|threshold|silu|gelu"),
    ("copies and fills", r"aten::(_to_)?copy|aten::fill|aten::zero|aten::clone|aten::contiguous"),
    ("linear layer and loss", r"linear|addmm|aten::mm|softmax|nll|cross_entropy"),
)


def profile_steps(config: DictConfig, data: ImageDataModule) -> dict[str, float]:
    """Train one short epoch in a bare loop under PyTorch's profiler.

    Args:
        config: settings of the training.
        data: its images.

    Returns:
        Milliseconds per step by type of layer, the largest first. Another program that uses the processor counts, too.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # The profiler reports that there is no GPU.
    bare(config, data)  # The first steps choose algorithms and allocate memory.
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        bare(config, data)
    steps = len(data.train_split) // data.batch_size
    milliseconds: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        names = [event.name, *_callers(event)]
        if EVALUATION not in names:
            milliseconds[layer_type(names)] += event.self_cpu_time_total / 1000 / steps
    return dict(sorted(milliseconds.items(), key=lambda pair: -pair[1]))


def layer_type(names: Iterable[str]) -> str:
    """Return the type of an operation.

    Args:
        names: its name, then that of its caller, and so on.
    """
    names = [*names]
    if any(name.startswith("Optimizer.step#") for name in names):
        return OPTIMIZER
    return next((kind for name in names for kind, pattern in _TYPES if re.search(pattern, name)), "other")


def _callers(event) -> Iterator[str]:
    while (event := event.cpu_parent) is not None:
        yield event.name
