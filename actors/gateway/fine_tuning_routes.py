"""`/v1/fine_tuning/jobs`: training by OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...runtime.errors import CallboardError
from ...schemas import base
from ...schemas.train import (
    AskTraining,
    CancelTraining,
    FollowTraining,
    JobState,
    PauseTraining,
    ResumeTraining,
    TrainCheckpointed,
    TrainEvaluated,
    TrainEvent,
    TrainJob,
    TrainNote,
    TrainProgress,
    TrainSampled,
)
from .bodies import decode_body, decode_query, read_body
from .endpoints import answer
from .fine_tuning import JOBS, checkpoint_folder, described_method
from .fine_tuning_types import FineTuningJob, JobBody, JobCheckpoint, JobError, JobEvent, JobRecord, Status
from .openai_routes import endpoint
from .pages import PageQuery, page
from .site import Site

_STATUS: dict[JobState, Status] = {
    JobState.STARTING: "queued",
    JobState.RUNNING: "running",
    JobState.PAUSED: "paused",
    JobState.FINISHED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
_ACTIVE = (JobState.STARTING, JobState.RUNNING)
# How long a run may take to tell what it told before; a run that was set back tells its last step once more first.
TELL_TIMEOUT_S = 5.0


def described(record: JobRecord, job: TrainJob, trained_tokens: int | None = None) -> FineTuningJob:
    finished = job.state is JobState.FINISHED
    error = None if job.error is None else JobError(job.error.code, job.error.message)
    return FineTuningJob(
        id=record.id,
        created_at=record.created_at,
        model=record.model,
        status=_STATUS[job.state],
        training_file=record.training_file,
        validation_file=record.validation_file,
        hyperparameters=record.chosen,
        method=described_method(record),
        seed=record.seed,
        metadata=record.metadata,
        fine_tuned_model=record.name if finished else None,
        finished_at=int(job.ended) if job.ended else None,
        trained_tokens=trained_tokens,
        error=error if job.state is JobState.FAILED else None,
    )


async def create(site: Site, request: Request) -> Response:
    body = decode_body(await read_body(request, site.max_body_bytes), JobBody)
    return answer(described(*await site.fine_tunes.create(body)))


async def list_jobs(site: Site, request: Request) -> Response:
    asked = decode_query(request, PageQuery)
    shown = page(await site.fine_tunes.records(), limit=asked.limit, order=asked.order, after=asked.after)
    shown["data"] = await asyncio.gather(*(_now(site, record) for record in shown["data"]))
    return answer(shown)


async def _now(site: Site, record: JobRecord) -> FineTuningJob:
    job = await _job(site, record)
    if job.state is not JobState.FINISHED:
        return described(record, job)
    tokens = site.fine_tunes.trained_tokens
    if record.id not in tokens:
        told = await _events(site, job)
        tokens[record.id] = sum(event.tokens for event in told if isinstance(event, TrainProgress))
    return described(record, job, tokens[record.id])


async def _job(site: Site, record: JobRecord) -> TrainJob:
    try:
        return await site.fine_tunes.ask(AskTraining(record.id))
    except CallboardError as error:
        if error.to_info().code != "train.none":
            raise
        gone = base.ErrorInfo("train.none", "the folder of the job was removed")
        return TrainJob(
            job=record.id, state=JobState.FAILED, folder="", out=record.out, model=record.base, data="", error=gone
        )


async def retrieve(site: Site, request: Request) -> Response:
    return answer(await _now(site, await _record(site, request)))


async def _record(site: Site, request: Request) -> JobRecord:
    return await site.fine_tunes.record(request.path_params["job_id"])


def _changing(change: Callable[[str], base.Request[TrainJob]]) -> Callable[[Site, Request], Awaitable[Response]]:
    async def work(site: Site, request: Request) -> Response:
        record = await _record(site, request)
        job = await site.fine_tunes.ask(change(record.id), timeout=site.config.request_timeout_s)
        return answer(described(record, job))

    return work


# Events


async def _events(site: Site, job: TrainJob) -> list[TrainEvent]:
    """What has been told of a job by now."""
    if not job.folder or (not job.step and job.state in _ACTIVE):
        return []
    told: list[TrainEvent] = []
    with anyio.move_on_after(TELL_TIMEOUT_S if job.state in _ACTIVE else None):
        async with aclosing(site.node.actor(JOBS).stream(FollowTraining(job.job))) as events:
            async for event in events:
                told.append(event)
                if job.state in _ACTIVE and isinstance(event, TrainProgress) and event.step >= job.step:
                    break
    return told


def timed(events: list[TrainEvent], began: float) -> list[tuple[int, TrainEvent]]:
    """Events have no times of their own: they are reckoned from the seconds that the steps took."""
    at, found = began, list[tuple[int, TrainEvent]]()
    for event in events:
        if isinstance(event, TrainProgress) and event.tokens_per_s > 0:
            at += event.tokens / event.tokens_per_s
        found.append((int(at), event))
    return found


async def events(site: Site, request: Request) -> Response:
    record, asked = await _record(site, request), decode_query(request, PageQuery)
    job = await _job(site, record)
    told = [_first(record), *(_event(at, event) for at, event in timed(await _events(site, job), job.started))]
    if (last := _last(job)) is not None:
        told.append(last)
    name = record.id.removeprefix("ftjob-")
    numbered = [_numbered(f"ftevent-{name}-{number}", event) for number, event in enumerate(told)]
    return answer(page(numbered, limit=asked.limit, order=asked.order, after=asked.after))


def _numbered(name: str, event: JobEvent) -> JobEvent:
    return msgspec.structs.replace(event, id=name)


def _first(record: JobRecord) -> JobEvent:
    return JobEvent(id="", created_at=record.created_at, level="info", message=f"Created fine-tuning job: {record.id}")


def _last(job: TrainJob) -> JobEvent | None:
    at = int(job.ended or job.started)
    match job.state:
        case JobState.FINISHED:
            return JobEvent(id="", created_at=at, level="info", message="The job has successfully completed")
        case JobState.FAILED:
            words = job.error.message if job.error else "it failed"
            return JobEvent(id="", created_at=at, level="error", message=f"The job failed: {words}")
        case JobState.CANCELLED:
            return JobEvent(id="", created_at=at, level="warn", message="The job was cancelled")
        case JobState.PAUSED:
            return JobEvent(id="", created_at=at, level="info", message="The job is paused")
    return None


def _event(at: int, event: TrainEvent) -> JobEvent:
    match event:
        case TrainProgress():
            data = {
                "step": event.step,
                "total_steps": event.num_steps,
                "train_loss": event.loss,
                "learning_rate": event.lr,
                "grad_norm": event.grad_norm,
                "tokens": event.tokens,
                **dict(event.metrics),
            }
            loss = "no number" if event.loss is None else f"{event.loss:.4f}"
            message = f"Step {event.step}/{event.num_steps}: training loss={loss}"
            if event.skipped:
                return JobEvent(
                    id="",
                    created_at=at,
                    level="warn",
                    type="metrics",
                    message=f"{message} ({event.skipped})",
                    data=data,
                )
            return JobEvent(id="", created_at=at, level="info", type="metrics", message=message, data=data)
        case TrainEvaluated():
            message = f"Step {event.step}: validation loss={event.loss:.4f}"
            data = {"step": event.step, "full_valid_loss": event.loss, "best": event.best}
            return JobEvent(id="", created_at=at, level="info", type="metrics", message=message, data=data)
        case TrainCheckpointed():
            return JobEvent(id="", created_at=at, level="info", message=f"Checkpoint created at step {event.step}")
        case TrainSampled():
            data = {"step": event.step, "prompt": event.prompt, "text": event.text}
            return JobEvent(id="", created_at=at, level="info", message=f"Step {event.step}: a sample", data=data)
        case TrainNote():
            return JobEvent(id="", created_at=at, level="warn", message=event.text)


async def checkpoints(site: Site, request: Request) -> Response:
    """Those that can still be served: a run keeps its last ones."""
    record, asked = await _record(site, request), decode_query(request, PageQuery)
    job = await _job(site, record)
    found: list[JobCheckpoint] = []
    losses: dict[str, float] = {}
    for at, event in timed(await _events(site, job), job.started):
        match event:
            case TrainProgress(loss=float() as loss):
                losses["train_loss"] = loss
            case TrainEvaluated():
                losses["full_valid_loss"] = event.loss
            case TrainCheckpointed() if checkpoint_folder(job, event.step).is_dir():
                name = f"ftckpt_{record.id.removeprefix('ftjob-')}_{event.step}"
                found.append(
                    JobCheckpoint(
                        id=name,
                        created_at=at,
                        fine_tuned_model_checkpoint=f"{record.name}:ckpt-step-{event.step}",
                        fine_tuning_job_id=record.id,
                        step_number=event.step,
                        metrics={"step": event.step, **losses},
                    )
                )
    return answer(page(found, limit=asked.limit, order=asked.order, after=asked.after))


async def delete_model(site: Site, request: Request) -> Response:
    name = request.path_params["model"]
    await site.fine_tunes.remove(name)
    return answer({"id": name, "object": "model", "deleted": True})


def fine_tuning_routes(site: Site) -> list[Route]:
    jobs, one = "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/{job_id}"
    return [
        Route(jobs, endpoint(create, site), methods=["POST"]),
        Route(jobs, endpoint(list_jobs, site), methods=["GET"]),
        Route(one, endpoint(retrieve, site), methods=["GET"]),
        Route(f"{one}/cancel", endpoint(_changing(CancelTraining), site), methods=["POST"]),
        Route(f"{one}/pause", endpoint(_changing(PauseTraining), site), methods=["POST"]),
        Route(f"{one}/resume", endpoint(_changing(ResumeTraining), site), methods=["POST"]),
        Route(f"{one}/events", endpoint(events, site), methods=["GET"]),
        Route(f"{one}/checkpoints", endpoint(checkpoints, site), methods=["GET"]),
        Route("/v1/models/{model:path}", endpoint(delete_model, site), methods=["DELETE"]),
    ]
