"""A process whose start is cut short by a cancel is known to its caller, who can end it."""

from __future__ import annotations

import gc
import subprocess
import sys

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from callboard.runtime.processes import whole

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("num_steps", range(12))
async def test_a_process_is_known_wherever_its_start_was_cancelled(num_steps: int) -> None:
    known: list[anyio.abc.Process] = []

    async def start() -> None:
        command = [sys.executable, "-c", "input()"]
        known.append(await whole(anyio.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)))
        await anyio.lowlevel.checkpoint()
        pytest.fail("the cancel did not arrive after the start")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start)
        for _ in range(num_steps):
            if not known:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    (process,) = known
    process.kill()
    await process.wait()
    await process.aclose()
    gc.collect()  # where a transport was left open, this complains
