"""The actor that is asked to evaluate models: it asks them one after the other, keeps each sample, and reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.errors import ActorStopped
from ...schemas.evaluate import (
    Evaluate,
    EvaluatedSample,
    EvaluateProgress,
    EvaluationReport,
    Evaluations,
    EvaluationSamples,
    ListEvaluations,
    SamplesSent,
    ShowEvaluation,
)
from ..models.evaluations import evaluations_root
from ..models.store import ModelStore
from .record import find_record, kept_report, kept_samples, summaries
from .run import Run

# Progress that nobody has heard of yet, before the work waits for who asked.
UNHEARD = 1024


class EvaluatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`models_folder`: where models are kept, "" for `models` in the data folder; evaluations are kept beside it.
    `once`: end with the first evaluation, however that ends, also where whoever asked is gone by then."""

    models_folder: str = ""
    once: bool = False


class Evaluator(Actor[EvaluatorConfig]):
    """Serves `Evaluate`, one at a time, and at any time what is kept of earlier ones. What a request has done stays
    when it is interrupted.

    Raises UsageError, NoSuchData, UnknownFormat, BadRecord, NoSuchModel, ModelDamaged, UnsupportedModel, ConfigError,
    and what an engine raises.
    """

    async def started(self) -> None:
        folder = self.config.models_folder
        self.store = ModelStore(Path(folder) if folder else None)
        self.root = evaluations_root(self.store)
        self._turn = asyncio.Lock()
        self._work: asyncio.Future[EvaluationReport] | None = None
        self._is_ending = False

    def draining(self) -> None:
        """What is done is kept, so nobody waits for the rest; whoever goes on with it must find it let go."""
        self._is_ending = True
        if self._work is not None:
            self._work.cancel()

    @handler(concurrent=True)
    async def evaluate(self, message: Evaluate) -> AsyncIterator[EvaluateProgress | EvaluationReport]:
        async with self._turn:
            if self._is_ending:
                raise self._ended()
            send, receive = anyio.create_memory_object_stream[EvaluateProgress](UNHEARD)
            run = Run(self, self.store, self.config.models_folder, message, send)
            self._work = work = asyncio.ensure_future(run.whole())
            async with receive:
                try:
                    async for progress in receive:
                        yield progress
                    await asyncio.wait([work])
                    if work.cancelled() and self._is_ending:
                        raise self._ended()
                    yield work.result()
                finally:
                    work.cancel()
                    with anyio.CancelScope(shield=True):
                        await asyncio.wait([work])
                    if self.config.once:
                        self.finish()

    def _ended(self) -> ActorStopped:
        return ActorStopped(f"{self.address} ended in the middle", hint="ask again: what was done is kept")

    @handler(concurrent=True)
    async def list_evaluations(self, message: ListEvaluations) -> Evaluations:
        return await anyio.to_thread.run_sync(summaries, self.root)

    @handler(concurrent=True)
    async def show(self, message: ShowEvaluation) -> EvaluationReport:
        return await anyio.to_thread.run_sync(lambda: kept_report(find_record(self.root, message.id)))

    @handler(concurrent=True)
    async def samples(self, message: EvaluationSamples) -> AsyncIterator[EvaluatedSample | SamplesSent]:
        samples = await anyio.to_thread.run_sync(
            lambda: kept_samples(find_record(self.root, message.id), wrong=message.wrong)
        )
        for sample in samples:
            yield sample
        yield SamplesSent(len(samples))
