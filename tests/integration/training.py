"""What the tests of training share: the stand-in's kind for processes, a configuration, what an unbroken run comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from board import install
from train_standin import Standin

from callboard.actors.train.events import read_all
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


def config(out: Path, **options: Any) -> TrainConfig:
    wanted: dict[str, Any] = {
        "model": "tiny",
        "data": "none",
        "out": str(out),
        "steps": 12,
        "optimizer": OptimizerSettings(lr=1e-2),
        "batch": BatchSettings(samples=8),
        "checkpoints": CheckpointSettings(every=4),
        "compute": ComputeSettings(threads=1),
    }
    return TrainConfig(**{**wanted, **options})


def unbroken(config: TrainConfig, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that one shard comes to when nothing happens to it."""
    import msgspec

    alone = msgspec.structs.replace(config, data="none", out=str(folder / "unbroken"))
    (folder / "unbroken-job" / "checkpoints").mkdir(parents=True)
    order = StartShard(
        config=alone, job="unbroken", folder=str(folder / "unbroken-job"), rank=0, world_size=1, host="", port=0
    )
    Standin(order).run(lambda event: None, lambda: None)
    return weights(folder / "unbroken")


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


def written(status: TrainJob) -> list[TrainEvent]:
    """What is in its file at the end."""
    return list(read_all(Path(status.folder) / "events.jsonl"))


async def shards_of(bus: Node | Client, job: str) -> list[ActorInfo]:
    """As their coordinator sees them, rank 0 first."""
    listed = await bus.actor(f"node.train-{job}").ask(ListActors(f"train-{job}-", 100))
    found = (await bus.actor(f"node.train-{job}").ask(ListActors("", 100))).actors if not listed.actors else ()
    places = [info for info in (*listed.actors, *found) if info.place == "process"]
    return sorted(places, key=lambda info: info.address)
