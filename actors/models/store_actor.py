"""The actor that keeps a machine's model store: lists it, and has models pulled and quantized, for who asks on the bus.

It does what `callboard models`, `pull` and `quantize` do, on its own machine. Jobs go on when who asked goes away. They
end with the actor; what they had done stays, and the same work goes on from there when it is asked for again.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio.to_thread
import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.errors import UsageError
from ...schemas.models import (
    CancelStoreJob,
    CompareModels,
    KnownName,
    ListStore,
    PullModel,
    QuantizeModel,
    StoreComparison,
    StoreJob,
    StoreListing,
    StoreWork,
)
from .results import results_of
from .store import ModelStore
from .store_jobs import Job, pull, quantize

# Jobs that have ended and are still told of.
REMEMBERED = 20
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`folder`: where models are kept, "" for `models` in the data folder."""

    folder: str = ""


class StoreKeeper(Actor[StoreConfig]):
    """Serves `ListStore`, `CompareModels`, and `PullModel`, `QuantizeModel`, `CancelStoreJob`, which answer at once."""

    async def started(self) -> None:
        folder = self.config.folder
        self._store = ModelStore(Path(folder) if folder else None)
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)

    async def stopped(self) -> None:
        for job in self._jobs.values():
            job.cancel()

    @handler(concurrent=True)
    async def list_store(self, message: ListStore) -> StoreListing:
        """Raises ModelDamaged for a manifest that cannot be read."""
        store = self._store

        def look() -> StoreListing:
            models = tuple(store.installed())
            there = {model.name for model in models}
            known = tuple(
                KnownName(model.name, model.description, model.license, sum(file.size for file in model.files))
                for model in store.known.values()
                if model.name not in there
            )
            disk = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
            free = shutil.disk_usage(disk).free
            return StoreListing(root=str(store.root), models=models, known=known, free_bytes=free)

        listing = await anyio.to_thread.run_sync(look)
        jobs = tuple(job.state for job in reversed(self._jobs.values()))
        return msgspec.structs.replace(listing, jobs=jobs)

    @handler(concurrent=True)
    async def compare(self, message: CompareModels) -> StoreComparison:
        """Raises NoSuchModel, ModelDamaged."""
        store = self._store
        names = dict.fromkeys(message.models)
        return await anyio.to_thread.run_sync(lambda: StoreComparison(tuple(results_of(store, name) for name in names)))

    @handler
    async def pull(self, message: PullModel) -> StoreJob:
        """Raises NoSuchModel."""
        self._store.check_name(message.model)
        same = self._running(StoreWork.PULL, message.model)
        if same is not None:
            return same.state
        return self._begin(
            StoreWork.PULL, message.model, message.model, lambda job: pull(self._store, job, force=message.force)
        )

    @handler
    async def quantize(self, message: QuantizeModel) -> StoreJob:
        """Raises NoSuchModel, ModelDamaged, UsageError for a name that cannot be the new one's."""
        source = await anyio.to_thread.run_sync(self._store.path, message.model)
        name = message.name or _name_of(message)
        if not _NAME.fullmatch(name) or name in self._store.known:
            raise UsageError(
                f"'{name}' cannot be the name of a quantized model",
                hint="use letters, digits, '.', '-' and '_', and no name that `callboard pull` knows",
            )
        there = await anyio.to_thread.run_sync(self._store.installed)
        if name in {model.name for model in there}:
            raise UsageError(f"there is a model '{name}' in the store", hint="give the new one another name")
        if self._running(StoreWork.QUANTIZE, name) is not None:
            raise UsageError(f"'{name}' is being made already", hint="wait for it, or cancel it first")
        return self._begin(
            StoreWork.QUANTIZE,
            message.model,
            name,
            lambda job: quantize(self, self._store, job, message, str(source)),
        )

    @handler
    async def cancel(self, message: CancelStoreJob) -> StoreJob:
        """Raises UsageError where there is no such job. One that is over stays as it is."""
        job = self._jobs.get(message.job)
        if job is None:
            raise UsageError(f"there is no job {message.job}", hint="`models.list` says which there are")
        job.cancel()
        return job.state

    def _running(self, work: StoreWork, name: str) -> Job | None:
        return next(
            (job for job in self._jobs.values() if job.is_running and (job.state.work, job.state.name) == (work, name)),
            None,
        )

    def _begin(self, work: StoreWork, model: str, name: str, do: Callable[[Job], Awaitable[None]]) -> StoreJob:
        job = Job(next(self._numbers), work, model, name)
        over = [number for number, old in self._jobs.items() if not old.is_running]
        for number in over[: max(0, len(over) - REMEMBERED + 1)]:
            del self._jobs[number]
        self._jobs[job.state.job] = job
        self.start_soon(job.run, do)
        return job.state


def _name_of(message: QuantizeModel) -> str:
    """`smollm2` in four bits is `smollm2-gptq4`, of a hub's or a path's name the last part."""
    base = Path(message.model).name.removesuffix(".gguf").partition("@")[0].lower()
    method = message.method or ("smooth" if message.bits == 8 else "gptq")
    return re.sub(r"[^\w.-]+", "-", f"{base}-{method}{message.bits}")
