"""`callboard.pipeline("smollm2")(["..."])`: a model's answers in a script or a notebook, with or without a daemon."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import msgspec
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ...runtime.blocking import SyncRef, SyncStream
from ...runtime.errors import ConfigError, NotReachable, UsageError
from ...runtime.exception_groups import leaves
from ...runtime.loops import backend_options
from ...runtime.node import Node
from ...runtime.refs import Ref
from ...schemas.serve import Completion, Generate, Token
from .finding import Serving, absolute_model, serving
from .prompts import Sampling, Turn, requests_of

if TYPE_CHECKING:
    from typing import Unpack

    from ...runtime.tls import Tls
    from .engine import EngineConfig

# So many of a list are with the engine at once; it computes as many of them together as it can.
AT_ONCE = 64
# What is under way when an engine of one's own is closed has so long to end.
CLOSE_S = 0.5
# An answer may take as long as it takes: Ctrl-C ends the wait.
PATIENCE_S = 24 * 3600.0


class Pipeline:
    """A model to ask: made by `pipeline`. Threads may share it.

    `model`: its name as the engine has it. `in_process`: whether it is computed here. Close it, use it as a context
    manager, or leave that to the garbage collector and the end of the program: an engine of its own ends with it.
    """

    def __init__(
        self, portal: BlockingPortal, served: Serving, model: str, in_process: bool, close: Callable[[], None]
    ) -> None:
        self.model = model
        self.in_process = in_process
        self._portal = portal
        self._ref = served.scheduler
        self._defaults = {"adapter": served.adapter} if served.adapter else {}
        self._close = weakref.finalize(self, close)
        _open.add(self)
        _close_at_exit()

    @overload
    def __call__(self, prompts: str | Sequence[Turn], **sampling: Unpack[Sampling]) -> Completion: ...
    @overload
    def __call__(
        self, prompts: list[str] | tuple[str, ...] | Sequence[Sequence[Turn]], **sampling: Unpack[Sampling]
    ) -> list[Completion]: ...
    def __call__(self, prompts: Any, **sampling: Any) -> Completion | list[Completion]:
        """The answer to a text or a conversation; to a list of these, the answers in its order.

        A text goes on as it is. A conversation is a list of turns, and goes through the model's chat template. By
        default the likeliest token is taken each time. Raises RequestInvalid for what can never be answered,
        UsageError for what is no prompt or no option; of a list, one error ends the others.
        """
        several, requests = requests_of(prompts, {**self._defaults, **sampling})
        answers = self._call(_answers, self._ref, requests)
        return answers if several else answers[0]

    def stream(self, prompt: str | Sequence[Turn], **sampling: Unpack[Sampling]) -> SyncStream[Token, Completion]:
        """The pieces of an answer as it grows; its `result` in the end is the whole. Leaving the loop early stops it.

        `for piece in pipe.stream("Once"): print(piece.text, end="", flush=True)`
        """
        several, requests = requests_of(prompt, {**self._defaults, **sampling})
        if several:
            raise UsageError("one prompt is streamed at a time", hint="call the pipeline itself with a list")
        self._check_open()
        return SyncRef(self._portal, self._ref).stream(requests[0], timeout=PATIENCE_S)

    def close(self) -> None:
        """Let go of the engine, or of the bus. What is under way ends. Safe to call twice."""
        self._close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "closed" if not self._close.alive else "in this process" if self.in_process else str(self._ref)
        return f"<Pipeline {self.model}, {where}>"

    def _check_open(self) -> None:
        if not self._close.alive:
            raise UsageError("the pipeline is closed")

    def _call(self, function: Any, *args: Any) -> Any:
        self._check_open()
        future = self._portal.start_task_soon(function, *args)
        try:
            return future.result()
        except BaseException:  # Ctrl-C too
            future.cancel()
            raise


_open: weakref.WeakSet[Pipeline] = weakref.WeakSet()


@functools.cache
def _close_at_exit() -> None:
    """Have what is open closed when the program ends: before Python takes the threads away that an engine computes in,
    which it does before what `atexit` knows."""
    getattr(threading, "_register_atexit", atexit.register)(_close_all)


def _close_all() -> None:
    for pipeline in list(_open):
        pipeline.close()


class _Close:
    """Ends what a pipeline has begun. It must know nothing of the pipeline, or that would never be garbage."""

    def __init__(self, stack: contextlib.ExitStack, loop_thread: int) -> None:
        self._stack = stack
        self._loop_thread = loop_thread

    def __call__(self) -> None:
        if threading.get_ident() != self._loop_thread:
            self._stack.close()
            return
        # The garbage collector may come along in the loop's own thread, which cannot wait for itself.
        threading.Thread(target=self._stack.close, name="pipeline-close").start()


def pipeline(
    model: str = "smollm2",
    *,
    connect: bool | None = None,
    nats: str = "",
    creds: str = "",
    state_dir: str = "",
    tls: Tls | None = None,
    **engine: Any,
) -> Pipeline:
    """A model to ask, by its name or the path of its file or folder; a served LoRA adapter's name too.

    By default (`connect` None) it is the running daemon's engine if that serves the model, so that it is loaded once
    for all who use it; else the model is loaded into this process. With `connect=True` it is the company's in any
    case: where nobody serves the model, its engine is started. With False it is always this process. The answers are
    the same. `nats`, `creds`, `state_dir`, `tls`: which company, as for `connect`. `engine`: settings of the engine
    (`device="cpu"`, `cache_mib=512`), see EngineConfig; with any, an engine of one's own is meant.

    Raises NoSuchModel, ModelDamaged, UnsupportedModel, ConfigError for settings that do not fit, and with
    `connect=True` NotReachable where no company runs.
    """
    if connect and engine:
        raise ConfigError(
            f"{', '.join(sorted(engine))}: settings of an engine of one's own, not of the company's",
            hint="leave `connect=True` out, or these; [engine] in callboard.toml sets them for the company",
        )
    if connect is False or engine:
        return _opened(model, False, lambda: _here(model, engine))
    options: dict[str, Any] = {"nats": nats, "creds": creds, "state_dir": state_dir, "tls": tls}
    if connect:
        return _opened(model, True, lambda: _through(model, options, start=True))
    try:
        return _opened(model, True, lambda: _through(model, options, start=False))
    except _NotServed:
        pass
    except NotReachable:
        if nats:
            raise
    return _opened(model, False, lambda: _here(model, {}))


class _NotServed(Exception):
    """The company does not serve the model."""


def _opened(
    model: str, connected: bool, context: Callable[[], contextlib.AbstractAsyncContextManager[Serving]]
) -> Pipeline:
    stack = contextlib.ExitStack()
    try:
        portal = stack.enter_context(start_blocking_portal(backend_options=backend_options(), name="pipeline"))
        served = stack.enter_context(portal.wrap_async_context_manager(context()))
        return Pipeline(portal, served, model, not connected, _Close(stack, portal.call(threading.get_ident)))
    except BaseException:
        stack.close()
        raise


@contextlib.asynccontextmanager
async def _here(model: str, options: Mapping[str, Any]) -> AsyncIterator[Serving]:
    """An engine on a node without a bus."""
    from .engine import Engine
    from .starting import ENGINE, SCHEDULER

    config = _config(model, options)
    async with Node(drain_timeout=CLOSE_S) as node:
        await node.spawn(Engine, config, name=ENGINE)
        yield Serving(node.actor(SCHEDULER))


@contextlib.asynccontextmanager
async def _through(model: str, options: Mapping[str, Any], *, start: bool) -> AsyncIterator[Serving]:
    """The company's engine of that model. Raises _NotServed where there is none and none is to be started."""
    from ...runtime.client import connect
    from .starting import ensure_engine

    async with connect(**options) as bus:
        found = await serving(bus, model)
        if found is None and start:
            await ensure_engine(bus, lambda: _config(model, {}))
            found = await serving(bus, model)
            if found is None:
                raise ConfigError(
                    f"the company's engine does not serve '{model}'",
                    hint="`callboard stop engine` ends it, or leave `connect=True` out to load the model here",
                )
        if found is None:
            raise _NotServed
        yield found


def _config(model: str, options: Mapping[str, Any]) -> EngineConfig:
    """As `callboard chat` would start it: with the table [engine] of the settings; `options` go before that."""
    from ...runtime.settings import load_settings
    from .engine import EngineConfig

    given = {**load_settings({}).engine, **options, "model": absolute_model(model)}
    try:
        return msgspec.convert(given, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"the engine's settings do not fit: {error}", hint="EngineConfig says what there is"
        ) from error


async def _answers(ref: Ref, requests: Sequence[Generate]) -> list[Completion]:
    room = asyncio.Semaphore(AT_ONCE)

    async def ask(request: Generate) -> Completion:
        async with room:
            return await ref.ask(request, timeout=PATIENCE_S)

    try:
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ask(request)) for request in requests]
    except BaseExceptionGroup as errors:
        raise next(leaves(errors)) from None  # the first is why the others were given up
    return [task.result() for task in asking]
