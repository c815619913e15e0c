"""Tools that take more than they should, each in a way of its own. Tests run them in processes with limits."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from callboard import tool

THIS_FILE = str(Path(__file__))
MIB = 1 << 20

_HOLD = "import sys, time; held = bytearray(int(sys.argv[1])); print('holds', flush=True); time.sleep(60)"
# Twice as many each time, and nobody's child for long, since those that start others end. It stops at some hundred, for
# the sake of the machine that tests run on.
_BOMB = """
import os, time
for _ in range(8):
    if os.fork():
        if os.fork():
            os._exit(0)
time.sleep(60)
"""


@tool
def pid() -> int:
    """Its process."""
    return os.getpid()


@tool(timeout=30)
def fill(mib: int) -> int:
    """Hold so much memory, all of it touched, in pieces."""
    held = [bytearray(MIB) for _ in range(mib)]
    return len(held)


@tool(timeout=30)
def fill_below(processes: int, mib: int) -> str:
    """Have so many processes hold so much memory each."""
    command = [sys.executable, "-c", _HOLD, str(mib * MIB)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(processes)]
    for each in started:
        assert each.stdout is not None
        each.stdout.readline()
    time.sleep(60)
    return "held it all"


@tool(timeout=30)
def bomb() -> str:
    """Start processes that start processes, without end."""
    subprocess.Popen([sys.executable, "-c", _BOMB])
    time.sleep(60)
    return "went on"


@tool(timeout=30, concurrency=2)
async def wait() -> str:
    """Do nothing for a while."""
    await asyncio.sleep(60)
    return "waited"


@tool
def some(count: int) -> int:
    """Start so many processes, and wait for their ends."""
    for each in [subprocess.Popen(["sleep", "0.2"]) for _ in range(count)]:
        each.wait()
    return count
