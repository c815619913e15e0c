"""How many threads compute, and how they wait for each other.

OpenMP threads spin at barriers, by default for milliseconds: with as many threads as cores, one busy neighbour (the
daemon, the NATS server, a client) makes them spin for a thread that is not running, and throughput falls to a few
percent. Sleeping at once costs more than the small operations of a decoding step take. A short spin holds up in both
cases: measured on two cores with one kept busy, one stream ran at 13.9 tokens/s against 3.3 with a longer spin, and
it cost less than a fifth on a quiet machine.
"""

from __future__ import annotations

import os
import sys

# Spins of some 40 ns: long enough for the gap between two operations of a step.
SPINS = "1000"


def process_env() -> dict[str, str]:
    """Environment variables for a process that is going to compute; they must be there before torch is imported."""
    return {
        "GOMP_SPINCOUNT": SPINS,  # GNU's OpenMP, which torch's Linux builds bring along
        "KMP_BLOCKTIME": "1",  # LLVM's, on macOS; in milliseconds
    }


def prepare_process() -> None:
    """Set `process_env` in this process, unless its owner set these variables or torch is here already."""
    if "torch" not in sys.modules:
        for name, value in process_env().items():
            os.environ.setdefault(name, value)


def default_threads() -> int:
    """All cores that this process may use; of more than two, one is left to the bus and its clients."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores <= 2 else cores - 1
