"""Replicas in processes of their own: killed with -9 in the middle of an answer, which goes on as if nothing was."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psutil
import pytest

from callboard.actors.serve.engine import Engine, EngineConfig
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.serve import Generate, Grammar, GrammarKind
from callboard.schemas.serve_stats import EngineStats, GetStats

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

LONG = Generate(prompt="tell me a story", max_tokens=120, temperature=0.8, seed=3, ignore_eos=True, session="s")


@asynccontextmanager
async def serving(node: Node, model: Path, **options: Any) -> AsyncIterator[Ref]:
    config = EngineConfig(model=str(model), num_blocks=200, threads=1, replica_process=True, **options)
    await node.spawn(Engine, config, name="engine")
    yield node.actor("engine.scheduler")
    stats = await idle(node.actor("engine"))
    assert stats.free_blocks == stats.num_blocks


async def idle(engine: Ref) -> EngineStats:
    with anyio.fail_after(10):
        while True:
            stats = await engine.ask(GetStats())
            if not stats.running and not stats.waiting:
                return stats


def kill(node: Node, replica: str) -> None:
    pid = node.actors[replica].info().pid
    assert pid != os.getpid()
    os.kill(pid, signal.SIGKILL)


async def collect(scheduler: Ref, request: Generate) -> list[int]:
    ids: list[int] = []
    async with scheduler.stream(request) as pieces:
        async for piece in pieces:
            ids += piece.token_ids
    return ids


@pytest.mark.parametrize("shape", [None, Grammar(GrammarKind.REGEX, "([a-z]{3} [0-9]{4},){20}")])
async def test_an_answer_goes_on_with_the_same_tokens_after_its_replica_was_killed(
    node: Node, tiny_path: Path, shape: Grammar | None
) -> None:
    request = msgspec.structs.replace(LONG, grammar=shape)
    async with serving(node, tiny_path) as scheduler:
        undisturbed = await collect(scheduler, request)
        ids: list[int] = []
        async with scheduler.stream(request) as pieces:
            while len(ids) < 10:
                ids += (await anext(pieces)).token_ids
            kill(node, "engine-replica")
            async for piece in pieces:
                ids += piece.token_ids
        assert ids == undisturbed
        stats = await scheduler.ask(GetStats())
        assert stats.replica_failures == 1
        assert (stats.finished, stats.failed, stats.aborted) == (2, 0, 0)
        assert await collect(scheduler, request) == undisturbed


async def test_with_two_replicas_the_other_one_takes_over(node: Node, tiny_path: Path) -> None:
    async with serving(node, tiny_path, replicas=2) as scheduler:
        undisturbed = await collect(scheduler, LONG)
        results: list[list[int]] = []

        async def one() -> None:
            results.append(await collect(scheduler, LONG))

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(one)
            with anyio.fail_after(10):
                while (await scheduler.ask(GetStats())).generated_tokens < 200:
                    pass
            kill(node, "engine-replica-0")
        assert results == [undisturbed] * 6
        assert (await scheduler.ask(GetStats())).failed == 0


@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_replica_that_hangs_is_killed_and_its_answers_go_on(node: Node, tiny_path: Path, replicas: int) -> None:
    """Stopped, a process lives and hears nothing, a closed pipe included. Only its steps' time limit tells."""
    victim = "engine-replica" if replicas == 1 else "engine-replica-0"
    # Prompts that begin differently are divided over the replicas.
    wanted = [msgspec.structs.replace(LONG, prompt=f"{number} times", session="") for number in range(4)]
    # Long enough for a step of a replica that shares its processors with other tests.
    async with serving(node, tiny_path, replicas=replicas, step_timeout_s=4.0) as scheduler:
        undisturbed = [await collect(scheduler, request) for request in wanted]
        before = (await scheduler.ask(GetStats())).generated_tokens
        pid = node.actors[victim].info().pid
        results: dict[int, list[int]] = {}

        async def one(index: int) -> None:
            results[index] = await collect(scheduler, wanted[index])

        async with anyio.create_task_group() as group:
            for index in range(len(wanted)):
                group.start_soon(one, index)
            with anyio.fail_after(10):
                while (await scheduler.ask(GetStats())).generated_tokens < before + 40:
                    pass
            os.kill(pid, signal.SIGSTOP)
        assert [results[index] for index in range(len(wanted))] == undisturbed
        await started_again(node, victim, pid)
        assert not psutil.pid_exists(pid)
        with anyio.fail_after(20):
            while len((await scheduler.ask(GetStats())).replicas) < replicas:
                await anyio.sleep(0.05)  # it is looked for now and then
        stats = await scheduler.ask(GetStats())
        assert (stats.failed, stats.replica_failures) == (0, 1)
        assert await collect(scheduler, wanted[0]) == undisturbed[0]


async def started_again(node: Node, replica: str, pid: int) -> None:
    """Wait until the replica runs in another process."""
    with anyio.fail_after(30):
        while (info := node.actors[replica].info()).state != "running" or info.pid == pid:
            await anyio.sleep(0.05)  # nobody announces that a life has begun
