"""Ends a tool's process whose event loop stands still: a coroutine that blocks it can be cancelled by nobody.

A thread asks the loop for a sign of life now and then. Without one for the longest time limit of its tools and some,
the process ends at once, callers hear that their tool is gone, and the supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import sys
import threading

from ...runtime.log import log

PATIENCE_S = 10.0
# As in BSD's sysexits: an internal software error.
EX_SOFTWARE = 70


class Watchdog:
    """Begins at once. `limit` is the longest time that a call may take, in seconds."""

    def __init__(self, limit: float) -> None:
        self._limit = limit + min(PATIENCE_S, limit)
        self._loop = asyncio.get_running_loop()
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        while not self._over.is_set():
            answered = threading.Event()
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(answered.set)
            if not answered.wait(self._limit):
                if self._over.is_set():
                    return
                log.critical("the event loop has stood still for %g s; the process ends", self._limit)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                sys.stderr.flush()
                os._exit(EX_SOFTWARE)
            self._over.wait(min(1.0, self._limit))  # between two looks

    def end(self) -> None:
        self._over.set()
