"""Ending all processes of a sandbox, on a machine that has no time for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def crowded_processor() -> Iterator[None]:
    """Programs that never pause, on the processor that `slow_to_die` has its child on."""
    first = min(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, {{{first}}})\nprint(flush=True)\nwhile True: pass"
    hogs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(6)]
    for hog in hogs:
        assert hog.stdout is not None
        hog.stdout.readline()
    yield
    for hog in hogs:
        hog.kill()
        hog.communicate()


@pytest.mark.slow  # what dies slowly takes its time
@pytest.mark.usefixtures("crowded_processor")
def test_who_dies_slowly_is_not_taken_for_many_who_come_back() -> None:
    program = Path(__file__).with_name("slow_to_die.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr
