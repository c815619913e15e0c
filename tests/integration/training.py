"""What the tests of training share: the stand-in's kind for processes, a configuration, an unbroken run's weights."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from board import install
from train_standin import Standin

from callboard.actors.train.events import read_all
from callboard.actors.train.job_folder import JobFolder
from callboard.actors.train.jobs import Jobs, JobsConfig
from callboard.runtime.bus import BusOptions
from callboard.runtime.client import Client
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.runtime import ActorInfo, ListActors
from callboard.schemas.train import (
    BatchSettings,
    CheckpointSettings,
    ComputeSettings,
    FollowTraining,
    OptimizerSettings,
    SampleSettings,
    StartShard,
    TrainConfig,
    TrainEvent,
    TrainJob,
    TrainProgress,
)

SHARD = "train.standin"


def install_standin(folder: Path) -> Path:
    """A folder for PYTHONPATH: processes that have it there know the kind SHARD."""
    source = (Path(__file__).parent / "train_standin.py").read_text()
    return install(folder, "train_standin", source, **{SHARD: "StandinShard"})


def config(out: Path, *does: str, **options: Any) -> TrainConfig:
    """`does`: what the stand-in does beside training."""
    wanted: dict[str, Any] = {
        "model": "tiny",
        "data": "none",
        "out": str(out),
        "steps": 12,
        "optimizer": OptimizerSettings(lr=1e-2),
        "batch": BatchSettings(samples=8),
        "checkpoints": CheckpointSettings(every=4),
        "compute": ComputeSettings(threads=1),
        "samples": SampleSettings(prompts=does),
    }
    return TrainConfig(**{**wanted, **options})


@pytest.fixture
async def node(nats_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setenv("PYTHONPATH", str(install_standin(tmp_path / "site")))
    async with Node(bus=BusOptions(nats_server.url), drain_timeout=4.0) as node:
        yield node


@pytest.fixture
async def jobs(node: Node, tmp_path: Path) -> Ref:
    return await node.spawn(Jobs, JobsConfig(str(tmp_path / "jobs"), SHARD), name="train")


class Unbroken(NamedTuple):
    weights: dict[str, torch.Tensor]
    losses: list[float]


def unbroken(config: TrainConfig, folder: Path) -> Unbroken:
    """What a run comes to when nothing happens to it."""
    alone = msgspec.structs.replace(config, samples=SampleSettings(), out=str(folder / "unbroken"))
    (folder / "unbroken-job" / "checkpoints").mkdir(parents=True)
    order = StartShard(
        config=alone, job="unbroken", folder=str(folder / "unbroken-job"), rank=0, world_size=1, host="", port=0
    )
    events: list[TrainEvent] = []
    Standin(order, config.shards.count).run(events.append, lambda: None)
    return Unbroken(weights(folder / "unbroken"), losses(events))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "weights.pt", weights_only=True)


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


async def followed(jobs: Ref, job: str, *, after: int = -1) -> tuple[TrainJob, list[TrainEvent]]:
    """How it ended, and all that was heard."""
    heard: list[TrainEvent] = []
    async with jobs.stream(FollowTraining(job, after)) as events:
        async for event in events:
            heard.append(event)
        return events.result, heard


async def until_step(jobs: Ref, job: str, step: int) -> None:
    async with jobs.stream(FollowTraining(job)) as events:
        async for event in events:
            if isinstance(event, TrainProgress) and event.step >= step:
                return
    raise AssertionError(f"{job} ended before step {step}")


def steps(events: list[TrainEvent]) -> list[int]:
    return [event.step for event in events if isinstance(event, TrainProgress)]


def losses(events: list[TrainEvent]) -> list[float]:
    return [event.loss or 0.0 for event in events if isinstance(event, TrainProgress)]


def written(status: TrainJob) -> list[TrainEvent]:
    """What is in its file at the end."""
    return list(read_all(Path(status.folder) / "events.jsonl"))


async def shards_of(bus: Node | Client, job: str) -> list[ActorInfo]:
    """As their coordinator sees them, rank 0 first."""
    listed = await bus.actor(f"node.train-{job}").ask(ListActors())
    shards = [info for info in listed.actors if info.place == "process" and info.pid]
    return sorted(shards, key=lambda info: info.address)


def attempts(folder: str | Path) -> int:
    """How many groups of shards a job has had."""
    return JobFolder(Path(folder)).record().attempt
