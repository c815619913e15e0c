"""A run over several nodes: it goes on with those that are left, and spreads out again when there are more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from training import SHARD, config, followed, install_standin, losses, steps, unbroken, until_step, written

from callboard.actors.train.jobs import Jobs, JobsConfig
from callboard.runtime.bus import BusOptions
from callboard.runtime.leases import Offer
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.train import (
    AskTraining,
    JobState,
    RunTraining,
    ShardSettings,
    TrainNote,
)

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(240)]

TWO_ON_NODES = ShardSettings(count=2, labels=("train",))


@pytest.fixture
async def jobs(nats_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ref]:
    monkeypatch.setenv("PYTHONPATH", str(install_standin(tmp_path / "site")))
    async with Node(bus=BusOptions(nats_server.url), drain_timeout=4.0) as node:
        options = JobsConfig(str(tmp_path / "jobs"), SHARD, node_patience_s=2.0)
        yield await node.spawn(Jobs, options, name="train")


@asynccontextmanager
async def stage(url: str, name: str) -> AsyncIterator[Node]:
    """A node with room for one shard."""
    async with Node(name, bus=BusOptions(url), offer=Offer(("train",), cpus=1), drain_timeout=1.0) as node:
        yield node


async def test_a_run_shrinks_to_the_nodes_that_are_left_and_grows_again(
    jobs: Ref, nats_server: Any, tmp_path: Path
) -> None:
    gates = tmp_path / "7", tmp_path / "15"
    wanted = config(tmp_path / "out", f"wait7={gates[0]}", f"wait15={gates[1]}", steps=40, shards=TWO_ON_NODES)
    ends: list[Any] = []

    async def follow() -> None:
        ends.append(await followed(jobs, "run"))

    async with stage(nats_server.url, "a"):
        async with stage(nats_server.url, "b"):
            await jobs.ask(RunTraining(wanted, "run"))
            await until_step(jobs, "run", 6)
        gates[0].touch()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await until_step(jobs, "run", 14)
            async with stage(nats_server.url, "c"):
                await anyio.sleep(2.0)  # the coordinator has heard of it
                gates[1].touch()
                while not ends:
                    await anyio.sleep(0.05)
    end, heard = ends[0]
    assert end.state is JobState.FINISHED
    assert steps(heard) == steps(written(end)) == list(range(1, 41))
    notes = [event.text for event in heard if isinstance(event, TrainNote)]
    assert any(note.startswith("1 shards go on, not 2") for note in notes)
    assert notes[-1] == "there is room for more shards: a larger group goes on"
    # The curve is that of a run that nothing happened to, but for rounding: the same samples, summed in another order.
    assert losses(heard) == pytest.approx(unbroken(config(tmp_path / "x", steps=40), tmp_path).losses, rel=1e-4)


async def test_a_run_waits_for_nodes_that_it_cannot_do_without(jobs: Ref, nats_server: Any, tmp_path: Path) -> None:
    shards = ShardSettings(count=2, labels=("train",), min_count=2)
    await jobs.ask(RunTraining(config(tmp_path / "out", shards=shards), "run"))
    async with stage(nats_server.url, "a"):
        while (job := await jobs.ask(AskTraining("run"))).error is None:
            await anyio.sleep(0.1)
        assert job.state is JobState.STARTING
        assert job.error.code == "actor.no_node"
        async with stage(nats_server.url, "b"):
            end, _ = await followed(jobs, "run")
    assert end.state is JobState.FINISHED
