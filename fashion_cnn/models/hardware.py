"""The device, the floating-point precision and the memory allocator that networks run with."""

import ctypes
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

# Lightning's short forms of its precision names.
_PRECISION_NAMES = {
    None: "32-true",
    32: "32-true",
    "32": "32-true",
    16: "16-mixed",
    "16": "16-mixed",
    "bf16": "bf16-mixed",
}
# Parameters of mallopt in glibc's <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def select_device(accelerator: str, devices: Any = 1) -> torch.device:
    """Return the first device that Lightning chooses for `accelerator`, `auto` included; the CPU as a fallback.

    Args:
        accelerator: as given to the Trainer.
        devices: as given to the Trainer.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", first_gpu(devices, torch.cuda.device_count()))
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def first_gpu(devices: Any, available: int) -> int:
    """Return the index of the first GPU that a Trainer uses.

    Args:
        devices: as given to the Trainer: a list of indices, such as `[1]` or `"1,"`, or their number.
        available: number of GPUs of this machine.

    Returns:
        The first listed index if this machine has it, otherwise 0.
    """
    if isinstance(devices, str):
        devices = [part for part in devices.split(",") if part.strip()] if "," in devices else 1
    first = int(devices[0]) if isinstance(devices, Sequence) and len(devices) else 0
    return first if 0 <= first < available else 0


def fast_precision(accelerator: str) -> str:
    """Return the fastest safe precision: bfloat16 if the hardware computes in it, otherwise float32.

    A CPU without AVX512-BF16 or AMX emulates bfloat16, which is slow.

    Args:
        accelerator: as given to the Trainer, `auto` included.

    Returns:
        Lightning's name, "bf16-mixed" or "32-true".
    """
    device = select_device(accelerator).type
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if device == "mps":
        return "32-true"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


def resolve_precision(precision: str | int | None, accelerator: str) -> str:
    """Return the precision in which Lightning's Trainer computes; float16 becomes bfloat16 on a CPU.

    Args:
        precision: as given to the Trainer, or "auto" for `fast_precision`.
        accelerator: as given to the Trainer, `auto` included.

    Returns:
        Lightning's name, such as "bf16-mixed".
    """
    if precision == "auto":
        return fast_precision(accelerator)
    name = _PRECISION_NAMES.get(precision, str(precision))
    return "bf16-mixed" if name == "16-mixed" and select_device(accelerator).type == "cpu" else name


def precision_context(precision: str | int | None, accelerator: str) -> AbstractContextManager[object]:
    """Return a context in which networks compute as in Lightning's Trainer; arguments as in `resolve_precision`."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(resolve_precision(precision, accelerator))
    return torch.autocast(select_device(accelerator).type, dtype) if dtype else nullcontext()


def describe_device(device: torch.device) -> str:
    """Return the device's name; for a CPU, its threads and vector instructions."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads != 1)}, {torch.backends.cpu.get_cpu_capability()}"


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next training step.

    By default it returns large blocks to the system, which zeroes them page by page for each step: on two cores that
    took a third of the training of `model=baseline` and a sixth of `model=small`. Keeping them costs about 60 MB.

    Returns:
        Whether it took effect; False with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_TRIM_THRESHOLD, -1) and mallopt(_M_MMAP_MAX, 0))
