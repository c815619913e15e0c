"""What a call gives to the tool that it runs: a place for progress, pieces and files, and the news that it is over."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from anyio.to_thread import run_sync

from ...runtime.errors import Cancelled, NotReachable
from ...schemas.base import Request
from ...schemas.tool import ToolProgress

R = TypeVar("R")


class Sink(Protocol):
    """Where progress and pieces go. Both may be called from the tool's thread; `piece` waits for room there."""

    def progress(self, progress: ToolProgress) -> None: ...
    def piece(self, piece: Any) -> None: ...
    async def piece_soon(self, piece: Any) -> None: ...


class NoSink:
    """For a call that nobody watches."""

    def progress(self, progress: ToolProgress) -> None: ...
    def piece(self, piece: Any) -> None: ...
    async def piece_soon(self, piece: Any) -> None: ...


class Asker(Protocol):
    """How a tool asks an actor, from its thread: the answer is awaited on the loop of its process."""

    def __call__(self, address: str, request: Request[R], seconds: float) -> Future[R]: ...


class ToolContext:
    """One call of a tool. A parameter annotated with this type is given it; a model does not see that parameter.

    `session` names the state that a tool keeps between calls ("" where the caller has none), `key` the call.
    """

    def __init__(
        self,
        *,
        session: str = "",
        key: str = "",
        sink: Sink | None = None,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None,
        asker: Asker | None = None,
    ) -> None:
        self.session = session
        self.key = key
        self.sink: Sink = sink or NoSink()
        self.in_thread = in_thread or _in_some_thread
        self._asker = asker
        self._asking: Future[Any] | None = None
        self._over = threading.Event()
        self._scratch: Path | None = None
        self._lock = threading.Lock()

    def progress(self, done: float, total: float = 0.0, text: str = "") -> None:
        """Tell the caller how far the call is; `total` 0 where nobody knows. From any thread."""
        self.sink.progress(ToolProgress(done, total, text))

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more. A loop in a sync tool looks here now and then."""
        return self._over.is_set()

    def check(self) -> None:
        """Raises Cancelled where nobody waits for the result any more."""
        if self._over.is_set():
            raise Cancelled("the call was given up")

    def wait(self, seconds: float) -> bool:
        """For sync tools: sleep, at most until the call is given up. Whether it was."""
        return self._over.wait(seconds)

    @property
    def scratch(self) -> Path:
        """A folder of this call, made on first use. It goes when the call ends, when its results are on their way."""
        with self._lock:
            if self._scratch is None:
                self._scratch = Path(tempfile.mkdtemp(prefix="callboard-tool-"))
                self._remove = weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
            return self._scratch

    def ask(self, address: str, request: Request[R], seconds: float = 30.0) -> R:
        """For sync tools: ask an actor that the tool's process may ask (`engine` of its options), one at a time.

        Raises what the actor does, Forbidden for any other, Cancelled where the call is given up meanwhile.
        """
        if self._asker is None:
            raise NotReachable("the tool runs without a bus, so there is nobody to ask")
        self.check()
        self._asking = asking = self._asker(address, request, seconds)
        if self._over.is_set():  # it was given up just now
            asking.cancel()
        try:
            return asking.result()
        except CancelledError:
            raise Cancelled("the call was given up") from None
        finally:
            self._asking = None

    async def ask_async(self, address: str, request: Request[R], seconds: float = 30.0) -> R:
        """The same for async tools. Cancelling it gives up the question."""
        if self._asker is None:
            raise NotReachable("the tool runs without a bus, so there is nobody to ask")
        return await asyncio.wrap_future(self._asker(address, request, seconds))

    def cancel(self) -> None:
        self._over.set()
        if (asking := self._asking) is not None:
            asking.cancel()

    @property
    def has_scratch(self) -> bool:
        return self._scratch is not None

    def close(self) -> None:
        """Remove what the call left. It touches the disk where there is a scratch folder."""
        with self._lock:
            scratch, self._scratch = self._scratch, None
        if scratch is not None:
            self._remove()


async def _in_some_thread(function: Callable[[], Any]) -> Any:
    return await run_sync(partial(function), abandon_on_cancel=True)
