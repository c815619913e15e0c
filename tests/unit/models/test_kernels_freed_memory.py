"""Memory that a process freed: kept for what it allocates next, where the C library is told so."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from callboard.kernels.freed_memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
faults = []
for size in (40, 48, 40, 36):  # MiB: beyond what glibc keeps by itself
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(b"x") * (size << 20)
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[2:]))
"""


def pages_got_again(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_what_is_freed_is_not_got_from_the_system_again() -> None:
    kept, as_it_is = pages_got_again("kept"), pages_got_again("as it is")
    assert 10 * kept < as_it_is  # 19,456 pages of 4 KiB, fewer where the system has them larger
