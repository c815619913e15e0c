"""Threads for one tool's functions, kept between calls, and written off when a function does not come back.

A thread that runs Python code cannot be ended from outside. So a call that is over, given up or out of time, leaves its
thread behind until it returns by itself; those that stay are counted, and whoever owns them decides what follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class _Work(NamedTuple):
    function: Callable[[], Any]
    context: contextvars.Context
    future: asyncio.Future[Any]


class Worker:
    """One thread. It is `busy` from the moment it is given work until the work's function has returned."""

    def __init__(self, pool: Threads, name: str) -> None:
        self._pool = pool
        self._works: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self.busy = False
        self.on_free: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def give(self, work: _Work | None) -> None:
        self.busy = work is not None
        self._works.put(work)

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            value: Any = None
            error: BaseException | None = None
            try:
                value = work.context.run(work.function)
            except BaseException as raised:  # whatever it is, it is the answer of the call
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                work.future.get_loop().call_soon_threadsafe(self._pool.done, self, work.future, value, error)
            del work, value, error


class Threads:
    """As many as are needed at once; idle ones are used again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[Worker] = []
        self._count = 0

    async def run(self, function: Callable[[], Any], taken: Callable[[Worker], None] | None = None) -> Any:
        """Run it in a thread and return what it returns. `taken` hears which; cancelled, that one stays busy."""
        if self._idle:
            worker = self._idle.pop()
        else:
            self._count += 1
            worker = Worker(self, f"{self._name}-{self._count}")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        worker.give(_Work(function, contextvars.copy_context(), future))
        if taken is not None:
            taken(worker)
        return await future

    def done(self, worker: Worker, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        """Called on the loop when a function has returned."""
        worker.busy = False
        self._idle.append(worker)
        if not future.done():
            if error is None:
                future.set_result(value)
            elif isinstance(error, StopIteration | asyncio.CancelledError) or not isinstance(error, Exception):
                # A future takes no StopIteration, and what would end this process is the call's own failure.
                future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
            else:
                future.set_exception(error)
        if worker.on_free is not None:
            on_free, worker.on_free = worker.on_free, None
            on_free()

    def close(self) -> None:
        """Let idle threads end. Busy ones are daemons: they hold up nothing."""
        while self._idle:
            self._idle.pop().give(None)
