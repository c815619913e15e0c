"""What a store is asked to do and takes its time for: a pull in a thread, a quantization in a process of its own."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec

from ...runtime.errors import CallboardError, NoSuchActor
from ...runtime.placement import Process
from ...runtime.supervision import Restart
from ...schemas.models import InstalledModel, PullProgress, QuantizeModel, StoreJob, StoreJobState, StoreWork
from ...schemas.quantize import Quantize

if TYPE_CHECKING:
    from ...runtime.actor import Actor
    from .store import ModelStore

QUANTIZER_KIND = "quantize.run"
# Its process imports torch first.
START_TIMEOUT_S = 120.0


class _GivenUp(Exception):
    """Raised into a pull from its own progress: the job was cancelled."""


class Job:
    """A job as it goes. `state` is replaced whenever there is news, by a thread too."""

    def __init__(self, number: int, work: StoreWork, model: str, name: str) -> None:
        self.state = StoreJob(job=number, work=work, model=model, name=name, started=time.time())
        self.cancelled = threading.Event()
        self._scope = anyio.CancelScope()

    @property
    def is_running(self) -> bool:
        return self.state.state is StoreJobState.RUNNING

    def cancel(self) -> None:
        self.cancelled.set()
        self._scope.cancel()

    def heard(self, **news: Any) -> None:
        self.state = msgspec.structs.replace(self.state, **news)

    async def run(self, work: Callable[[Job], Awaitable[None]]) -> None:
        """Do it to its end, whatever that is; only what is no error of ours goes on to who runs this."""
        state = StoreJobState.CANCELLED
        try:
            with self._scope:
                await work(self)
                state = StoreJobState.DONE
        except CallboardError as error:
            self.heard(error=error.to_info())
            state = StoreJobState.FAILED
        finally:
            self.cancelled.set()
            self.heard(state=state, ended=time.time())


async def pull(store: ModelStore, job: Job, *, force: bool) -> None:
    """As `callboard pull` does it. A cancelled one ends at its next sign of progress; what came of it is kept."""

    def show(progress: PullProgress) -> None:
        if job.cancelled.is_set():
            raise _GivenUp
        job.heard(stage=progress.stage.value, done=progress.done, total=progress.total)

    def work() -> None:
        try:
            store.pull(job.state.model, show, force=force)
        except _GivenUp:
            return

    # The thread is left to itself where it waits for a lock or a silent server: it ends by itself, and owns no state.
    await anyio.to_thread.run_sync(work, abandon_on_cancel=True)


async def quantize(actor: Actor[Any], store: ModelStore, job: Job, message: QuantizeModel, source: str) -> None:
    """Quantize beside the store's models, then make it one of them."""
    out = store.root / f".{job.state.name}.quantized"
    # What is whole and was not made one of the store's is of a job that ended just there; nobody else has use for it.
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(out, ignore_errors=True))
    request = Quantize(
        model=source,
        out=str(out),
        method=message.method or ("smooth" if message.bits == 8 else "gptq"),
        bits=message.bits,
        group_size=message.group_size,
        samples=message.samples,
        length=message.length,
    )
    name = f"{actor.address.replace('.', '-')}-quantize-{job.state.job}"
    where = Process(ready_timeout=START_TIMEOUT_S)
    job.heard(stage="starting")
    worker = await actor.spawn(QUANTIZER_KIND, name=name, where=where, restart=Restart.TEMPORARY)
    try:
        async with worker.stream(request) as heard:
            async for progress in heard:
                job.heard(stage=progress.stage, done=progress.done, total=progress.total)
            report = heard.result
    finally:
        with anyio.CancelScope(shield=True):
            await _stop(actor, worker.address)
    job.heard(stage="installing", report=report)
    base = next((model for model in store.installed() if model.name == message.model), None)
    adopted = InstalledModel(
        name=job.state.name,
        description=f"{message.model} in {report.bits} bits ({report.method})",
        license=base.license if base is not None else "",
        source=f"quantized from {message.model}",
        files=(),
    )
    await anyio.to_thread.run_sync(store.adopt, out, adopted)


async def _stop(actor: Actor[Any], address: str) -> None:
    try:
        await actor.node.stop(address, 1.0)
    except NoSuchActor:  # it crashed, and the stream has said so
        return
