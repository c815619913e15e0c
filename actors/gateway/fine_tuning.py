"""Jobs of fine-tuning: OpenAI's words for what the actor `train` does, and models by the names that they get.

What a client said of a job lies in a folder that all gateways of a machine share, and the job itself is the training
job of the same name. So a gateway may come and go, and jobs are finished whatever dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
import msgspec

from ...runtime.client import Client
from ...runtime.errors import CallboardError, ConfigError, NameTaken, NoSuchActor
from ...runtime.files import write_private
from ...runtime.node import Node
from ...schemas.base import Request
from ...schemas.serve import DescribeModel, LoadAdapter, UnloadAdapter
from ...schemas.train import (
    AskTraining,
    CheckpointSettings,
    EvaluationSettings,
    JobState,
    PreferenceSettings,
    RunTraining,
    Task,
    TrainConfig,
    TrainJob,
)
from .config import FineTuningSettings
from .engines import Engine, Engines
from .errors import BadBody, GatewayError, ModelUnknown
from .file_store import FileStore, NoSuchFile
from .fine_tuning_data import num_samples, prepared, steps_per_epoch
from .fine_tuning_types import Chosen, Hyperparameters, JobBody, JobRecord

T = TypeVar("T")

JOBS, JOBS_KIND = "train", "train.jobs"
PREFIX = "ft:"
# A batch of the size "auto" is no larger than this share of an epoch, so that small files have more than a few steps.
AUTO_STEPS_PER_EPOCH = 4
# How long an engine may take to read an adapter.
LOAD_TIMEOUT_S = 120.0

_ID = re.compile(r"ftjob-[0-9a-f]{24}")
_CHECKPOINT = re.compile(r"(?P<name>ft:.*):ckpt-step-(?P<step>\d{1,12})")


class NoSuchFineTune(GatewayError):
    code = "gateway.fine_tune"
    status = 404


class FineTunes:
    def __init__(
        self, node: Node, root: Path, files: FileStore, engines: Engines, settings: FineTuningSettings
    ) -> None:
        self._node = node
        self._root = root
        self._files = files
        self._engines = engines
        self._settings = settings
        self._loading = asyncio.Lock()
        self.trained_tokens: dict[str, int] = {}  # of jobs that are finished

    async def ask(self, request: Request[T], timeout: float | None = None) -> T:
        """Ask the actor that keeps the company's jobs; the daemon starts it where there is none yet."""
        try:
            return await self._node.actor(JOBS).ask(request, timeout=timeout)
        except NoSuchActor:
            with contextlib.suppress(NameTaken):  # somebody was faster
                await Client(self._node).spawn(JOBS_KIND, name=JOBS)
            return await self._node.actor(JOBS).ask(request, timeout=timeout)

    # Records

    async def records(self) -> list[JobRecord]:
        """The oldest first."""

        def read() -> list[JobRecord]:
            found = [_decode(path.read_bytes()) for path in self._root.glob("ftjob-*.json")]
            return sorted(found, key=lambda record: (record.created_at, record.id))

        return await anyio.to_thread.run_sync(read)

    async def record(self, job_id: str) -> JobRecord:
        """Raises NoSuchFineTune."""
        if _ID.fullmatch(job_id):
            with contextlib.suppress(FileNotFoundError):
                return _decode(await anyio.to_thread.run_sync((self._root / f"{job_id}.json").read_bytes))
        raise NoSuchFineTune(f"there is no job '{job_id}'", param="fine_tuning_job_id")

    # Beginning

    async def create(self, body: JobBody) -> tuple[JobRecord, TrainJob]:
        """Raises BadBody, ModelUnknown, NoSuchFile, and what the actor raises where there is no room, say."""
        method, wished = _method(body)
        base = await self._base(body.model)
        job_id, dpo = f"ftjob-{secrets.token_hex(12)}", method == "dpo"
        data, samples = await self._data(body.training_file, job_id, dpo, "training_file")
        validation, _ = (
            await self._data(body.validation_file, job_id, dpo, "validation_file") if body.validation_file else ("", 0)
        )
        chosen = self._chosen(wished, samples, dpo)
        record = JobRecord(
            id=job_id,
            created_at=int(time.time()),
            model=body.model,
            base=base,
            training_file=body.training_file,
            validation_file=body.validation_file,
            method=method,
            chosen=chosen,
            seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
            metadata=body.metadata or {},
            name=f"{PREFIX}{base.rstrip('/').rpartition('/')[2]}:{body.suffix or ''}:{job_id[-8:]}",
            out=str(self._root / job_id),
        )
        place = self._root / f"{job_id}.json"
        await anyio.to_thread.run_sync(write_private, place, msgspec.json.encode(record))
        try:
            config = self._config(record, data, validation, steps_per_epoch(samples, chosen.batch_size))
            return record, await self.ask(RunTraining(config, job_id))
        except CallboardError as error:
            place.unlink(missing_ok=True)  # nothing has begun
            if isinstance(error, ConfigError):
                raise BadBody(error.message, hint=error.hint) from error
            raise

    async def _base(self, name: str) -> str:
        """What is to be trained, as engines and the store call it. Raises ModelUnknown."""
        if name in self._settings.models:
            return name
        engine = await self._engines.find(name)
        if engine.adapter:
            raise ModelUnknown(f"'{name}' is an adapter: fine-tune '{engine.model.model}'", param="model")
        return engine.model.model

    async def _data(self, file_id: str, job_id: str, dpo: bool, field: str) -> tuple[str, int]:
        """Where the data is, and how many samples it has."""

        def look() -> tuple[str, int]:
            try:
                path = self._files.path(file_id)
            except NoSuchFile as error:
                raise BadBody(f"{field}: {error.message}", param=field) from error
            path = prepared(path, dpo, self._root / f"{job_id}-{field}.jsonl", field)
            return str(path), num_samples(path, dpo, field)

        return await anyio.to_thread.run_sync(look)

    def _chosen(self, wished: Hyperparameters, samples: int, dpo: bool) -> Chosen:
        settings = self._settings
        batch = wished.batch_size
        if not isinstance(batch, int):
            batch = max(1, min(settings.batch.samples, samples // AUTO_STEPS_PER_EPOCH))
        beta = wished.beta if isinstance(wished.beta, float) else PreferenceSettings().beta
        multiplier = wished.learning_rate_multiplier
        return Chosen(
            n_epochs=wished.n_epochs if isinstance(wished.n_epochs, int) else settings.epochs,
            batch_size=batch,
            learning_rate_multiplier=multiplier if isinstance(multiplier, float) else 1.0,
            beta=beta if dpo else None,
        )

    def _config(self, record: JobRecord, data: str, validation: str, epoch: int) -> TrainConfig:
        """A checkpoint and an evaluation at the end of each epoch of `epoch` steps."""
        settings, chosen, dpo = self._settings, record.chosen, record.method == "dpo"
        lr = settings.preference_lr if dpo else settings.optimizer.lr
        return TrainConfig(
            model=record.base,
            data=data,
            out=record.out,
            task=Task.DPO if dpo else Task.SFT,
            method=settings.method,
            epochs=float(chosen.n_epochs),
            seed=record.seed,
            lora=settings.lora,
            preference=PreferenceSettings(beta=chosen.beta) if chosen.beta is not None else PreferenceSettings(),
            batch=msgspec.structs.replace(settings.batch, samples=chosen.batch_size),
            optimizer=msgspec.structs.replace(settings.optimizer, lr=lr * chosen.learning_rate_multiplier),
            compute=settings.compute,
            shards=settings.shards,
            checkpoints=CheckpointSettings(every=epoch),
            evaluation=EvaluationSettings(data=validation, every=epoch) if validation else EvaluationSettings(),
        )

    # Serving what came of it

    async def find(self, name: str) -> tuple[str, Path] | None:
        """Of the name of a fine-tuned model or of one of its checkpoints: the base model, and the adapter's folder."""
        if not name.startswith(PREFIX):
            return None
        at = _CHECKPOINT.fullmatch(name)
        for record in await self.records():
            if record.name != (at["name"] if at else name):
                continue
            job = await self.ask(AskTraining(record.id))
            if at:
                place = checkpoint_folder(job, int(at["step"]))
            else:
                place = Path(job.out)
                if job.state is not JobState.FINISHED:
                    return None
            return (record.base, place) if await anyio.Path(place).is_dir() else None
        return None

    async def load(self, name: str) -> bool:
        """Have the engine of the base model load what is called `name`. Whether there is such a thing.

        Raises ModelUnknown where nobody serves the base model, and what the engine raises.
        """
        found = await self.find(name)
        if found is None:
            return False
        base, folder = found
        async with self._loading:
            engine = await self._engines.find(base)
            if name not in await self._loaded(engine):
                await engine.scheduler.ask(LoadAdapter(name, str(folder)), timeout=LOAD_TIMEOUT_S)
        return True

    async def remove(self, name: str) -> None:
        """Delete what came of a job; its record stays. Raises ModelUnknown where there is no such model."""
        found = None if _CHECKPOINT.fullmatch(name) else await self.find(name)
        if found is None:
            raise ModelUnknown(f"there is no fine-tuned model '{name}'", param="model")
        base, folder = found
        async with self._loading:
            with contextlib.suppress(ModelUnknown):  # nobody serves its base, so nobody has it either
                engine = await self._engines.find(base)
                if name in await self._loaded(engine):
                    await engine.scheduler.ask(UnloadAdapter(name), timeout=LOAD_TIMEOUT_S)
            await anyio.to_thread.run_sync(shutil.rmtree, folder)
        await self._engines.look(since=time.monotonic())

    @staticmethod
    async def _loaded(engine: Engine) -> tuple[str, ...]:
        return (await engine.scheduler.ask(DescribeModel())).adapters


def checkpoint_folder(job: TrainJob, step: int) -> Path:
    """Where a run leaves the adapter of a checkpoint, as long as it is one of the last."""
    return Path(job.folder) / "adapters" / f"step-{step:08d}"


_decode = msgspec.json.Decoder(JobRecord).decode


def _method(body: JobBody) -> tuple[Literal["supervised", "dpo"], Hyperparameters]:
    """Raises BadBody."""
    if body.integrations:
        raise BadBody("integrations: there are none; curves are in the job's events", param="integrations")
    method = body.method
    if method is None or method.type == "supervised":
        settings = method.supervised if method else None
        wished = settings.hyperparameters if settings else None
        return "supervised", wished or body.hyperparameters or Hyperparameters()
    if method.type == "reinforcement":
        raise BadBody("method.type: expected supervised or dpo", param="method.type")
    return "dpo", (method.dpo.hyperparameters if method.dpo else None) or body.hyperparameters or Hyperparameters()


def described_method(record: JobRecord) -> dict[str, Any]:
    return {"type": record.method, record.method: {"hyperparameters": record.chosen}}
