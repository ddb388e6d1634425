"""In processes of their own, since what the C library is told stays."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from fashion_cnn.models.hardware import keep_freed_memory
told = {keep} and keep_freed_memory()
torch.ones(2_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    a, b = torch.ones(2_000_000), torch.ones(20_000_000)
    del a, b
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(keep):
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    told, faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return told == "True", int(faults)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's way with memory")
def test_freed_memory_is_kept_for_the_next_step():
    told, faults_when_kept = run(True)
    assert told
    assert run(False)[1] > 3 * faults_when_kept
