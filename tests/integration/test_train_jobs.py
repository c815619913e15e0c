"""Jobs, coordinators and shards as real processes over a real bus: what they answer, and what is left of a run."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from board import install

from callboard.actors.train.jobs import Jobs, JobsConfig
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import ConfigError, RemoteError
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.train import (
    AskTraining,
    BatchSettings,
    CheckpointSettings,
    FollowTraining,
    JobState,
    ListTraining,
    OptimizerSettings,
    PauseTraining,
    ResumeTraining,
    RunTraining,
    ShardSettings,
    TrainCheckpointed,
    TrainConfig,
    TrainEvent,
    TrainProgress,
)

pytestmark = pytest.mark.anyio

STANDIN = (Path(__file__).parent / "train_standin.py").read_text()


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started here know the kind `train.standin`."""
    site = install(tmp_path / "site", "train_standin", STANDIN, **{"train.standin": "StandinShard"})
    monkeypatch.setenv("PYTHONPATH", str(site))


@pytest.fixture
async def node(nats_server: Any, standin: None) -> AsyncIterator[Node]:
    async with Node(bus=BusOptions(nats_server.url), drain_timeout=4.0) as node:
        yield node


@pytest.fixture
async def jobs(node: Node, tmp_path: Path) -> Ref:
    return await node.spawn(Jobs, JobsConfig(str(tmp_path / "jobs"), "train.standin"), name="train")


def config(tmp_path: Path, **options: Any) -> TrainConfig:
    wanted: dict[str, Any] = {
        "model": "tiny",
        "data": "none",
        "out": str(tmp_path / "out"),
        "steps": 12,
        "optimizer": OptimizerSettings(lr=1e-2),
        "batch": BatchSettings(samples=8),
        "checkpoints": CheckpointSettings(every=4),
    }
    return TrainConfig(**{**wanted, **options})


async def test_a_run_is_followed_to_its_end(jobs: Ref, tmp_path: Path) -> None:
    job = await jobs.ask(RunTraining(config(tmp_path)))
    assert (job.job, job.state) == ("tiny-1", JobState.STARTING)
    heard: list[TrainEvent] = []
    async with jobs.stream(FollowTraining(job.job)) as events:
        async for event in events:
            heard.append(event)
        end = events.result
    assert (end.state, end.step, end.num_steps, end.error) == (JobState.FINISHED, 12, 12, None)
    assert [event.step for event in heard if isinstance(event, TrainProgress)] == list(range(1, 13))
    assert [event.step for event in heard if isinstance(event, TrainCheckpointed)] == [4, 8, 12]
    assert (tmp_path / "out" / "weights.pt").is_file()
