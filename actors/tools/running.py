"""How a tool's function is run, whichever of the four kinds it is, and its `setup` before it."""

from __future__ import annotations

import asyncio
import enum
import inspect
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ...runtime.errors import CallboardError
from ...runtime.log import log
from .context import ToolContext
from .errors import ToolFailed, ToolOverLimit, ToolSetupFailed
from .outcome import Outcome, Reply
from .values import File

if TYPE_CHECKING:
    from .tool import Tool

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class Way(enum.Enum):
    """What a tool's function is, which says where it runs."""

    COROUTINE = "coroutine"
    ASYNC_GENERATOR = "async generator"
    GENERATOR = "generator"
    FUNCTION = "function"


def way_of(function: Callable[..., Any]) -> Way:
    if inspect.iscoroutinefunction(function):
        return Way.COROUTINE
    if inspect.isasyncgenfunction(function):
        return Way.ASYNC_GENERATOR
    return Way.GENERATOR if inspect.isgeneratorfunction(function) else Way.FUNCTION


class Once:
    """A tool's `setup`: run once, however many calls wait for it, and again at the next call where it failed.

    It belongs to no call: one that is given up or out of time leaves it running for the next.
    """

    def __init__(self, tool: Tool) -> None:
        from .tool import Tool

        self._tool = tool
        self._task: asyncio.Task[None] | None = None
        self.is_ready = type(tool).setup is Tool.setup

    async def wait(self, in_thread: InThread) -> None:
        """Return when the tool is ready. Raises ToolSetupFailed, or what `setup` itself said."""
        while not self.is_ready:
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._run(in_thread))
                self._task.add_done_callback(self._done)
            await asyncio.shield(self._task)

    async def _run(self, in_thread: InThread) -> None:
        name = self._tool.info.name
        try:
            if inspect.iscoroutinefunction(self._tool.setup):
                await self._tool.setup()
            else:
                await in_thread(self._tool.setup)
        except CallboardError:
            raise
        except Exception as error:
            log.error("the setup of the tool %s failed: %s", name, error, exc_info=error)
            raise ToolSetupFailed(
                f"the tool {name} could not be made ready: {_said(error)}", detail=traceback.format_exc()
            ) from error

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self.is_ready = not task.cancelled() and task.exception() is None

    async def close(self, in_thread: InThread) -> None:
        """Stop a setup under way, and call the tool's `close` after one that went well."""
        from .tool import Tool

        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if not self.is_ready or type(self._tool).close is Tool.close:
            return
        self.is_ready = type(self._tool).setup is Tool.setup
        if inspect.iscoroutinefunction(self._tool.close):
            await self._tool.close()
        else:
            await in_thread(self._tool.close)


async def run_tool(tool: Tool, values: dict[str, Any], context: ToolContext) -> Outcome:
    """Run it with arguments that were accepted. Raises what it says, ToolFailed for what it did not foresee."""
    try:
        if tool.is_plain:
            return tool.finish(await tool.function(**values))
        work = tool.prepare(values, context)
        way = tool.way
        if way is Way.COROUTINE:
            value = await (await context.in_thread(work) if tool.converts else work())
        elif way is Way.ASYNC_GENERATOR:
            value = await _streamed(await context.in_thread(work) if tool.converts else work(), context)
        elif way is Way.GENERATOR:
            return await context.in_thread(lambda: tool.finish(_drained(work(), context)))
        else:
            return await context.in_thread(lambda: _settled(tool, work()))
        return await context.in_thread(lambda: tool.finish(value)) if tool.outputs_convert else tool.finish(value)
    except CallboardError:
        raise
    except MemoryError as error:
        raise ToolOverLimit(f"the tool {tool.info.name} needs more memory than its process can have") from error
    except Exception as error:
        name = tool.info.name
        log.warning("the tool %s failed: %s", name, error, exc_info=error)
        raise ToolFailed(f"the tool {name} failed: {_said(error)}", detail=traceback.format_exc()) from error


def _settled(tool: Tool, value: Any) -> Outcome:
    if inspect.isawaitable(value):
        raise TypeError("a function that gives back an awaitable must be an `async def`")
    return tool.finish(value)


async def _streamed(pieces: Any, context: ToolContext) -> Any:
    kept: list[Any] = []
    try:
        async for piece in pieces:
            if isinstance(piece, Reply):
                return piece
            await context.sink.piece_soon(piece)
            kept.append(piece)
    finally:
        await pieces.aclose()
    return _joined(kept)


def _drained(pieces: Any, context: ToolContext) -> Any:
    kept: list[Any] = []
    try:
        while True:
            context.check()
            try:
                piece = next(pieces)
            except StopIteration as end:
                return _joined(kept) if end.value is None else end.value
            if isinstance(piece, Reply):
                return piece
            context.sink.piece(piece)
            kept.append(piece)
    finally:
        pieces.close()


def _joined(pieces: list[Any]) -> Any:
    """The result of a generator that names none: texts are put together, other pieces listed."""
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(pieces)
    return pieces[0] if len(pieces) == 1 and isinstance(pieces[0], File) else pieces


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
