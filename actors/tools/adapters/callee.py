"""A tool of ours as other frameworks call one: here or in the company, awaited or not.

Frameworks call tools from wherever they like: from a loop of their own, or from no loop at all. What is called without
awaiting runs in the loop that the tool belongs to, which is never the one that would then stand still.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ....runtime.errors import UsageError
from ....schemas.tool import ToolInfo
from ..client import OpenedTool, list_tools, open_tool
from ..media_json import without_media
from ..outcome import Outcome
from ..tool import Tool
from ..values import File


class Callee:
    """What the adapters take. `call` blocks, `acall` is awaited; both raise ToolError."""

    def __init__(
        self,
        info: ToolInfo,
        ask: Callable[[Mapping[str, Any]], Coroutine[Any, Any, Outcome]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.info = info
        self._ask = ask
        self.loop = loop

    def call(self, arguments: Mapping[str, Any]) -> Outcome:
        """From any thread but the one of the tool's own loop. Raises UsageError there."""
        if _running_loop() is self.loop:
            raise UsageError(
                f"{self.info.name} is called without awaiting in the loop that it needs",
                hint="await it, or call it from another thread: `await asyncio.to_thread(...)`",
            )
        future = asyncio.run_coroutine_threadsafe(self._ask(arguments), self.loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, say
            future.cancel()
            raise

    async def acall(self, arguments: Mapping[str, Any]) -> Outcome:
        """From any loop. Cancelling it gives the call up."""
        if _running_loop() is self.loop:
            return await self._ask(arguments)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._ask(arguments), self.loop))


def callee(tool: Tool | OpenedTool | Callee) -> Callee:
    """From a tool that was written here, or one of the company's that was opened in the running loop."""
    if isinstance(tool, Callee):
        return tool
    if isinstance(tool, OpenedTool):
        loop = _running_loop()
        if loop is None:
            raise UsageError(
                "a tool that was opened in a loop is adapted in that loop",
                hint="without one, use `with company_tools(...)`",
            )
        return Callee(tool.info, tool.request, loop)

    async def ask(arguments: Mapping[str, Any]) -> Outcome:
        media: dict[str, File] = {}
        text = without_media(arguments, tool.schemas()[0], media)
        return await tool.call(text, media)

    return Callee(tool.info, ask, _own_loop())


@contextmanager
def company_tools(
    names: Sequence[str], *, nats: str = "", creds: str = "", state_dir: str = ""
) -> Iterator[list[Callee]]:
    """Tools of the running company, for code without a loop: `with company_tools(["files.*"]) as tools: ...`.

    A name may end in `*`. Raises NotReachable, NoSuchTool.
    """
    from ....runtime.client import connect

    loop = _own_loop()
    opened: concurrent.futures.Future[list[Callee]] = concurrent.futures.Future()
    leave = asyncio.Event()

    async def hold() -> None:
        # One task enters and leaves, as what is open in it demands.
        try:
            async with AsyncExitStack() as over:
                bus = await over.enter_async_context(connect(nats, creds, state_dir=state_dir))
                exact = [name for name in names if not name.endswith("*")]
                patterns = tuple(name for name in names if name.endswith("*"))
                found = await list_tools(bus, names=patterns) if patterns else ()
                wanted = dict.fromkeys([*exact, *(info.name for info in found)])
                tools = [await over.enter_async_context(open_tool(bus, name)) for name in wanted]
                opened.set_result([Callee(tool.info, tool.request, loop) for tool in tools])
                await leave.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    holding = asyncio.run_coroutine_threadsafe(hold(), loop)
    try:
        yield opened.result()
    finally:
        loop.call_soon_threadsafe(leave.set)
        holding.result()


def framework(name: str, package: str) -> Any:
    """The module of somebody else's framework. Raises UsageError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{package} cannot be imported: {error}", hint=f"pip install {package}") from error


def lasting_path(file: File) -> str:
    """A file with these bytes for whoever knows files alone. It is theirs: nobody removes it."""
    place = Path(tempfile.mkdtemp(prefix="callboard-result-")) / file.file_name
    place.write_bytes(file.view)
    return str(place)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@cache
def _own_loop() -> asyncio.AbstractEventLoop:
    """A loop in a thread of its own, for as long as the process lives: for tools that belong to no other."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="callboard-tools", daemon=True).start()
    return loop
