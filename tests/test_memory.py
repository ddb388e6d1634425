"""Reuse of freed memory, in subprocesses, since the setting of the C library is permanent."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from fashion_cnn.models.hardware import keep_freed_memory
took_effect = {keep} and keep_freed_memory()
torch.ones(2_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    a, b = torch.ones(2_000_000), torch.ones(20_000_000)
    del a, b
print(took_effect, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(keep):
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    took_effect, faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return took_effect == "True", int(faults)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_reused_without_page_faults():
    took_effect, faults_with_reuse = run(True)
    assert took_effect
    assert run(False)[1] > 3 * faults_with_reuse
