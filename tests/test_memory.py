"""Memory, measured in subprocesses: reuse of what was freed, a setting that is permanent, and the peak of decoding."""

import platform
import subprocess
import sys

import pytest
from PIL import Image

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


DECODING = """
import resource, sys
from pathlib import Path
from fashion_cnn.pictures.decoding import decode
small, large = map(Path, sys.argv[1:])
decode(small, min_pixels=784)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(large, min_pixels=784)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="other systems count memory in other units")
@pytest.mark.parametrize(
    ("kind", "mode", "bytes_per_pixel"),
    # The pixels in memory take 2, 4 and 1 bytes, which whole copies would multiply.
    [("PNG", "I;16", 4), ("PNG", "RGBA", 6), ("PNG", "P", 3), ("JPEG2000", "RGB", 3)],
)
def test_the_peak_of_decoding_is_little_more_than_the_picture(tmp_path, kind, mode, bytes_per_pixel):
    files = [tmp_path / f"{side}" for side in (50, 4000)]
    for file in files:
        Image.new(mode, (int(file.name),) * 2).save(file, kind)
    command = [sys.executable, "-c", DECODING, *map(str, files)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(output) < 16 * bytes_per_pixel
