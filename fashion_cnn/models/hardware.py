"""Hardware that a network runs on: the device, its fast number format, and how freed memory is kept."""

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext

import torch

# What Lightning calls the formats by, beside their names.
_PRECISION_NAMES = {
    None: "32-true",
    32: "32-true",
    "32": "32-true",
    16: "16-mixed",
    "16": "16-mixed",
    "bf16": "bf16-mixed",
}
# The numbers of glibc's <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def select_device(accelerator: str) -> torch.device:
    """The device that Lightning takes for this `accelerator`, `auto` included; the CPU where there is none of it."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def fast_precision(accelerator: str) -> str:
    """Lightning's name of the format: bfloat16 where the hardware has it, else float32.

    accelerator: as given to the Trainer, `auto` included. bfloat16 is emulated, and slow, on a
    processor without AVX512-BF16 or AMX.
    """
    device = select_device(accelerator).type
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if device == "mps":
        return "32-true"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


def resolve_precision(precision: str | int | None, accelerator: str) -> str:
    """Lightning's name of the format that its Trainer computes in with these two settings; `auto` is what is fast here.

    What a CPU cannot do well, float16, is bfloat16 there.
    """
    if precision == "auto":
        return fast_precision(accelerator)
    name = _PRECISION_NAMES.get(precision, str(precision))
    return "bf16-mixed" if name == "16-mixed" and select_device(accelerator).type == "cpu" else name


def precision_context(precision: str | int | None, accelerator: str) -> AbstractContextManager[object]:
    """Has networks compute as Lightning's Trainer does with these two settings."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(resolve_precision(precision, accelerator))
    return torch.autocast(select_device(accelerator).type, dtype) if dtype else nullcontext()


def describe_device(device: torch.device) -> str:
    """What computes there, in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads != 1)}, {torch.backends.cpu.get_cpu_capability()}"


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next step; whether it could be told so.

    Else it gives large blocks back to the system, which zeroes them anew, page by page, for each step: on two
    cores that took a third of the training of `model=baseline`, a sixth of `model=small`. Costs some 60 MB.
    Without effect where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_TRIM_THRESHOLD, -1) and mallopt(_M_MMAP_MAX, 0))
