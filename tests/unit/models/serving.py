"""What the tests of the engine share: a node with an engine on a tiny model, and ways to ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from callboard.actors.serve.engine import Engine, EngineConfig
from callboard.actors.serve.runner import Runner
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.base import Message
from callboard.schemas.serve import Completion, Generate
from callboard.schemas.serve_stats import EngineStats, GetStats
from callboard.schemas.serve_steps import Step, StepResult


def through_the_wire(message: Message) -> Message:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


@asynccontextmanager
async def serving(model: Path | str, **options: Any) -> AsyncIterator[Ref]:
    """A node with an engine; yields its scheduler, and finds every block free at the end."""
    async with Node("test", round_trip=through_the_wire) as node:
        config = {"num_blocks": 64, "max_batch_tokens": 64, "max_running": 64, "threads": 1, "block_size": 4, **options}
        await node.spawn(Engine, EngineConfig(model=str(model), **config), name="engine")
        scheduler = node.actor("engine.scheduler")
        yield scheduler
        await idle(scheduler)


async def idle(scheduler: Ref) -> EngineStats:
    """The statistics once nothing runs or waits any more."""
    with anyio.fail_after(10):
        while True:
            stats = await scheduler.ask(GetStats())
            if not stats.running and not stats.waiting:
                assert stats.free_blocks == stats.num_blocks
                return stats


async def answer(ref: Ref, request: Generate) -> tuple[list[int], Completion]:
    """The ids and the completion of a stream, whose pieces must add up to it."""
    texts: dict[int, str] = {}
    ids: dict[int, list[int]] = {}
    async with ref.stream(request) as pieces:
        async for piece in pieces:
            texts[piece.index] = texts.get(piece.index, "") + piece.text
            ids.setdefault(piece.index, []).extend(piece.token_ids)
        result = pieces.result
    assert [texts.get(index, "") for index in range(request.n)] == [choice.text for choice in result.choices]
    assert [ids[index] for index in range(request.n)] == [list(choice.token_ids) for choice in result.choices]
    assert result.text == texts[0]
    if request.best_of is None:
        assert sum(map(len, ids.values())) == result.usage.completion_tokens
    return ids[0], result


async def answers(ref: Ref, requests: list[Generate]) -> list[list[int]]:
    """The ids of several streams at once."""
    results: list[list[int]] = [[] for _ in requests]

    async def one(index: int) -> None:
        results[index] = (await answer(ref, requests[index]))[0]

    async with anyio.create_task_group() as group:
        for index in range(len(requests)):
            group.start_soon(one, index)
    return results


def requests(count: int, **fields: Any) -> list[Generate]:
    """Prompts of different lengths, greedy and sampled by turns."""
    return [
        Generate(
            prompt="tell me " * (1 + i % 5) + str(i),
            **{"max_tokens": 10 + i, "temperature": i % 2 * 0.9, "top_p": 0.9, "seed": i, **fields},
        )
        for i in range(count)
    ]


class Flaky:
    """Stands before `Runner.execute` and lets some steps crash the replica."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, crashes: Callable[[int, Step], bool]) -> None:
        self.num_steps = 0
        execute = Runner.execute

        def flaky(runner: Runner, step: Step) -> StepResult:
            self.num_steps += 1
            if crashes(self.num_steps, step):
                raise MemoryError("a test")
            return execute(runner, step)

        monkeypatch.setattr(Runner, "execute", flaky)
