"""The device, the floating-point precision, the CPU threads and the memory allocator that networks run with."""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional

from fashion_cnn.errors import UserError

# Lightning's short forms of its precision names.
_PRECISION_NAMES = {
    None: "32-true",
    32: "32-true",
    "32": "32-true",
    16: "16-mixed",
    "16": "16-mixed",
    "bf16": "bf16-mixed",
}
# Threads that PyTorch uses by default: one per core, or OMP_NUM_THREADS.
DEFAULT_THREADS = torch.get_num_threads()
# Vector units that compute in bfloat16, by the names of torch.cpu.
_BFLOAT16_UNITS = ("avx512_bf16", "amx_tile")
# Rounds and seconds per number of threads of the measurement that `fastest_threads` makes.
_THREAD_ROUNDS, _THREAD_SECONDS = 4, 0.02
# Fewer threads than the default must be this much faster: results differ between numbers of threads.
_WORTHWHILE_SPEEDUP = 1.1
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

    Args:
        accelerator: as given to the Trainer, `auto` included.

    Returns:
        Lightning's name, "bf16-mixed" or "32-true".
    """
    return "bf16-mixed" if computes_in_bfloat16(select_device(accelerator).type) else "32-true"


def computes_in_bfloat16(device_type: str) -> bool:
    """Return whether this machine's hardware computes in bfloat16.

    A CPU without AVX512-BF16 or AMX emulates bfloat16: a product of matrices takes some twenty times as long as in
    float32.

    Args:
        device_type: "cpu", "cuda" or "mps".
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and any(map(_cpu_supports, _BFLOAT16_UNITS))


def has_onednn(dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes convolutions of this dtype on this CPU."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and computes_in_bfloat16("cpu"))


def has_amx() -> bool:
    """Return whether this CPU multiplies matrices in the tile units of Intel's AMX."""
    return _cpu_supports("amx_tile")


def _cpu_supports(unit: str) -> bool:
    """Return whether the processor has a vector unit; False if this version of torch does not report it."""
    return bool(getattr(torch.cpu, f"_is_{unit}_supported", lambda: False)())


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


def resolve_threads(threads: int | str, precision: str | int | None = None) -> int:
    """Return the number of CPU threads for a training on the CPU.

    Where another program keeps a core busy, a training with a thread on each core waits at each operation for the
    thread that was interrupted, and can be several times slower than one with fewer threads.

    Args:
        threads: the number, or "auto" for the fastest number at the moment, which is measured in a fifth of a second;
            with the environment variable OMP_NUM_THREADS, "auto" is PyTorch's default.
        precision: as given to the Trainer.

    Raises:
        UserError: if the number is not possible on this machine.
    """
    if threads == "auto":
        is_fixed = "OMP_NUM_THREADS" in os.environ or DEFAULT_THREADS == 1
        return DEFAULT_THREADS if is_fixed else fastest_threads(DEFAULT_THREADS, _throughput_of_threads(precision))
    most = max(os.cpu_count() or 1, DEFAULT_THREADS)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= most:
        raise UserError(f"threads={threads} is not possible on this machine: give auto, or 1 to {most}.", status=2)
    return threads


@contextmanager
def restored_threads() -> Iterator[None]:
    """Set the number of CPU threads back at the end of the block."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fastest_threads(available: int, throughput: Callable[[int], float]) -> int:
    """Return the number of threads with the highest throughput, among `available` and its halves down to one.

    All numbers are measured in turn, several times, so that each meets the same load of the machine.

    Args:
        available: the default, which is kept unless another number is clearly faster.
        throughput: measures a number of threads, in any unit of work per second.
    """
    candidates = [available]
    while candidates[-1] > 1:
        candidates.append(candidates[-1] // 2)
    totals = dict.fromkeys(candidates, 0.0)
    for _ in range(_THREAD_ROUNDS):
        for threads in candidates:
            totals[threads] += throughput(threads)
    fastest = max(candidates, key=totals.__getitem__)
    return fastest if totals[fastest] > _WORTHWHILE_SPEEDUP * totals[available] else available


def _throughput_of_threads(precision: str | int | None) -> Callable[[int], float]:
    """Return a function that measures a number of threads, in convolutions of the size of a small network's."""
    images = torch.zeros(64, 32, 14, 14).to(memory_format=torch.channels_last).requires_grad_()
    weights = torch.zeros(64, 32, 3, 3, requires_grad=True)

    def step() -> None:
        with torch.enable_grad(), precision_context(precision, "cpu"):
            output = functional.conv2d(images, weights, padding=1).relu()
            torch.autograd.grad(output.sum(), (images, weights))

    def throughput(threads: int) -> float:
        with restored_threads():
            torch.set_num_threads(threads)
            step()  # Not measured: it may start threads.
            start, steps, seconds = time.perf_counter(), 0, 0.0
            while seconds < _THREAD_SECONDS:
                step()
                steps += 1
                seconds = time.perf_counter() - start
        return steps / seconds

    return throughput


def describe_device(device: torch.device) -> str:
    """Return the name of a device; for a CPU the number of threads in use and the vector instructions."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    most = max(threads, DEFAULT_THREADS)
    number = f"{threads} of {most}" if threads < most else f"{threads}"
    return f"CPU, {number} thread{'s' * (most != 1)}, {torch.backends.cpu.get_cpu_capability()}"


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
