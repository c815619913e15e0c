"""The actor that is asked to quantize a model: it shares the layers out in groups, keeps what comes back, and reports.

Of several groups each begins with what the unquantized model gives it, so that none waits for another; within a group
each layer makes up for what those before it have lost. One group for all is slower and a little better.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec
import torch
from safetensors.torch import load, save

from ...runtime.actor import Actor, handler
from ...runtime.errors import NoSuchActor
from ...runtime.exception_groups import leaves
from ...runtime.placement import OnNode, Process, Where
from ...runtime.refs import Ref
from ...runtime.supervision import Restart
from ...schemas.quantize import (
    LayerKept,
    LayerQuantized,
    Quantize,
    QuantizeLayers,
    QuantizeProgress,
    QuantizeReport,
)
from .layer_group import LayerGroup, unpack
from .prepare import prepare
from .run import LayerDone, advance_plain, embed, finish, keep_layer, left_at, open_work
from .source import Source, open_source
from .stream import Stream
from .work import WorkFolder

T = TypeVar("T")
START_TIMEOUT_S = 120.0
# Layers that may be done before the one who asked hears of the first.
UNHEARD = 1024


class QuantizerConfig(msgspec.Struct, frozen=True):
    """`once`: end with the first request, however that ends, also where whoever asked is gone by then."""

    once: bool = False


class Quantizer(Actor[QuantizerConfig]):
    """Serves `Quantize`, one at a time. What it has done stays when it is interrupted: see `WorkFolder`.

    Raises UsageError, NoSuchModel, ModelDamaged, UnsupportedModel, NoNodeFits, and what a group raised.
    """

    @handler
    async def quantize(self, message: Quantize) -> AsyncIterator[QuantizeProgress | QuantizeReport]:
        began = time.monotonic()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="quantize") as thread:
            run = _Run(self, message, thread)
            try:
                await run.prepare()
                for stage in (run.layers(), run.finish(began)):
                    async with aclosing(stage):
                        async for step in stage:
                            yield step
            finally:
                with anyio.CancelScope(shield=True):
                    await run.close()
                if self.config.once:
                    self.finish()


class _Run:
    def __init__(self, actor: Quantizer, message: Quantize, thread: ThreadPoolExecutor) -> None:
        self._actor = actor
        self._message = message
        self._thread = thread
        self._source: Source | None = None

    async def prepare(self) -> None:
        self._job, self._tokens = await self._do(lambda: prepare(self._message))
        self._source = source = await self._do(lambda: open_source(Path(self._job.model)))
        self._work: WorkFolder = await self._do(lambda: open_work(self._job, source, self._tokens.calibration))
        num_layers = source.config.num_layers
        size = self._message.layers_per_actor or num_layers
        self._groups = [range(first, min(first + size, num_layers)) for first in range(0, num_layers, size)]

    @property
    def source(self) -> Source:
        assert self._source is not None
        return self._source

    async def layers(self) -> AsyncGenerator[QuantizeProgress, None]:
        """Every group beside the others, each after its last finished layer."""
        num_layers = self.source.config.num_layers
        done = sum(self._work.is_done(layer) for layer in range(num_layers))
        send, receive = anyio.create_memory_object_stream[float](UNHEARD)
        tasks = asyncio.ensure_future(self._all_groups(send))
        try:
            async with receive:
                async for error in receive:
                    done += 1
                    yield QuantizeProgress("layers", done, num_layers, error)
            await tasks
        finally:
            tasks.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([tasks])

    async def _all_groups(self, send: anyio.abc.ObjectSendStream[float]) -> None:
        try:
            async with send, anyio.create_task_group() as group:
                hidden = await self._do(lambda: embed(self.source, self._tokens.calibration))
                for number, layers in enumerate(self._groups):
                    last = number == len(self._groups) - 1
                    entry = hidden if last else hidden.clone()
                    group.start_soon(self._group, layers, entry, send)
                    if not last:
                        await self._do(lambda layers=layers: advance_plain(self.source, layers, hidden))
        except BaseExceptionGroup as errors:
            raise next(leaves(errors)) from None

    async def _group(self, layers: range, entry: torch.Tensor, send: anyio.abc.ObjectSendStream[float]) -> None:
        first = left_at(self._work, layers)
        if first == layers.stop:
            return
        stream = Stream(entry) if first == layers.start else await self._do(lambda: self._work.stream(first))
        worker = await self._worker(layers)
        blobs = self._actor.blobs
        blob = await blobs.put(await self._do(lambda: save(stream.tensors())))
        request = QuantizeLayers(
            model=self._job.model,
            first=first,
            last=layers.stop,
            hidden=blob,
            recipe=msgspec.json.encode(self._job.recipe),
        )
        try:
            async with worker.stream(request) as heard:
                async for layer in heard:
                    done = await self._received(layer)
                    await self._do(lambda done=done: keep_layer(self._work, done))
                    await worker.tell(LayerKept(layer.layer))
                    await send.send(max(done.errors.values()))
        finally:
            with anyio.CancelScope(shield=True):
                await blobs.release(blob)
                with contextlib.suppress(NoSuchActor):  # it crashed, and the stream has said so
                    await self._actor.node.stop(worker.address)

    async def _received(self, layer: LayerQuantized) -> LayerDone:
        blobs = self._actor.blobs
        tensors, hidden = await blobs.get(layer.tensors), await blobs.get(layer.hidden)
        errors = {error.product: error.share for error in layer.errors}
        return await self._do(lambda: LayerDone(layer.layer, load(tensors), errors, unpack(hidden)))

    async def _worker(self, layers: range) -> Ref:
        labels = self._message.labels
        name = f"layers-{layers.start}"
        if not labels and len(self._groups) == 1:
            return await self._actor.spawn(LayerGroup, name=name, restart=Restart.TEMPORARY)
        where: Where = OnNode(labels=labels, process=True) if labels else Process(ready_timeout=START_TIMEOUT_S)
        # A process is a root of the bus, so its name says whose it is.
        name = f"{self._actor.address.replace('.', '-')}-{name}"
        return await self._actor.spawn("quantize.layers", name=name, where=where, restart=Restart.TEMPORARY)

    async def finish(self, began: float) -> AsyncGenerator[QuantizeProgress | QuantizeReport, None]:
        send, receive = anyio.create_memory_object_stream[QuantizeProgress](UNHEARD)
        loop = asyncio.get_running_loop()

        def hear(progress: QuantizeProgress) -> None:
            loop.call_soon_threadsafe(tell, progress)

        def tell(progress: QuantizeProgress) -> None:
            with contextlib.suppress(anyio.BrokenResourceError):  # nobody listens any more
                send.send_nowait(progress)

        def work() -> QuantizeReport:
            try:
                return finish(
                    self._job,
                    self.source,
                    self._work,
                    self._tokens.calibration,
                    self._tokens.held_out,
                    began,
                    hear,
                )
            finally:
                loop.call_soon_threadsafe(send.close)

        report = asyncio.ensure_future(self._do(work))
        try:
            async with receive:
                async for progress in receive:
                    yield progress
            yield await report
        finally:
            with anyio.CancelScope(shield=True):  # a thread is not interrupted, and what it works on is closed next
                await asyncio.wait([report])

    async def close(self) -> None:
        if self._source is not None:
            await self._do(self._source.close)

    async def _do(self, work: Callable[[], T]) -> T:
        def inferring() -> T:
            with torch.inference_mode():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, inferring)
