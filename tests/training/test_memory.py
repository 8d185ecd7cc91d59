"""Memory kept between steps. In processes of their own: what `mallopt` set stays set."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from polewise.training import keep_freed_memory

def pages_of_a_large_tensor():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16, 1 << 20)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(4):  # until the pool has its size
    pages_of_a_large_tensor()
print(pages_of_a_large_tensor())
"""


RESIDENT = """
import resource, torch
from pathlib import Path
from polewise.training import keep_freed_memory, release_freed_memory

def resident_pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

assert keep_freed_memory()
torch.ones(64, 1 << 20)  # 256 MiB, freed at once
kept = resident_pages()
release_freed_memory()
print((kept - resident_pages()) * resource.getpagesize())
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)


def test_what_was_freed_is_used_again_without_asking_the_system():
    assert answer(FAULTS, "keep") < 10
    assert answer(FAULTS, "leave") > 20  # what it saves: 32 pages of 2 MiB, or 16,384 of 4 KiB


def test_what_was_kept_can_be_returned():
    assert answer(RESIDENT) > 200 << 20


def answer(program: str, *arguments: str) -> int:
    command = [sys.executable, "-c", program, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
