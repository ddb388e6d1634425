"""The number format that this machine computes fast in."""

import torch


def fast_precision(accelerator: str) -> str:
    """Lightning's name of the format: bfloat16 where the hardware has it, else float32.

    accelerator: as given to the Trainer, `auto` included. bfloat16 is emulated, and slow, on a
    processor without AVX512-BF16 or AMX.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


def describe(device: torch.device) -> str:
    """What computes there, in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads != 1)}, {torch.backends.cpu.get_cpu_capability()}"
