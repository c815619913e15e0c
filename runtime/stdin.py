"""Lines of stdin for a program that does other things meanwhile, be it a terminal, a pipe or a file.

A thread reads, since an event loop cannot wait for a file. It is a daemon and reads the descriptor itself: one that
waits inside `sys.stdin` would hold that object's lock, and the interpreter could not end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator


async def stdin_lines() -> AsyncIterator[str]:
    """Each line without its end, as it comes."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue(1)

    def read() -> None:
        with contextlib.suppress(RuntimeError, asyncio.CancelledError):  # the loop has ended: nobody reads on
            while True:
                chunk = os.read(0, 1 << 16)
                asyncio.run_coroutine_threadsafe(chunks.put(chunk), loop).result()
                if not chunk:
                    return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    rest = b""
    while chunk := await chunks.get():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")
