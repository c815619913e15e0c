"""A thousand clients who come, wait, go away, and lose their replica: every block is free at the end, and who was
answered was answered as if alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import anyio
import pytest
from serving import Flaky, answer, idle, through_the_wire

from callboard.actors.serve.engine import Engine, EngineConfig
from callboard.runtime.node import Node
from callboard.schemas.serve import Completion, Embed, Generate, Score

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

NUM_CLIENTS = 1000
AT_ONCE = 40
OPTIONS: dict[str, Any] = {
    "num_blocks": 44, "block_size": 4, "max_batch_tokens": 24, "max_running": 9, "max_sessions": 4, "threads": 1
}  # fmt: skip


def make_request(chance: random.Random) -> Generate:
    """One of few prompts, many of which begin alike."""
    prompt = "tell me " * chance.randrange(1, 5) + chance.choice("abcdef")
    return Generate(
        prompt=prompt,
        max_tokens=chance.randrange(1, 14),
        ignore_eos=True,
        temperature=chance.choice([0.0, 0.0, 0.8]),
        seed=chance.randrange(3),
        n=chance.choice([1, 1, 1, 2]),
        priority=chance.choice([0, 0, 0, 1, -1]),
        client=chance.choice(["", "a", "b"]),
        session=chance.choice(["", "", "", "s", "t", "u", "v", "w"]),
        prompt_logprobs=chance.choice([None, None, None, None, 0]),
        speculative=chance.choice([None, False]),
    )


def question(request: Generate) -> tuple[Any, ...]:
    """All that the answer may depend on; more answers or tokens only add to it."""
    return request.prompt, request.temperature, request.seed


ANSWERS: dict[tuple[Any, ...], list[tuple[int, ...]]] = {}


async def undisturbed(model: Path) -> dict[tuple[Any, ...], list[tuple[int, ...]]]:
    """The longest answers to every question, asked one after the other; found out once."""
    wanted = ANSWERS
    if wanted:
        return wanted
    async with Node("alone") as node:
        config = EngineConfig(model=str(model), **{**OPTIONS, "num_blocks": 200, "overlap": False})
        engine = await node.spawn(Engine, config, name="engine")
        for count in range(1, 5):
            for end in "abcdef":
                for temperature, seed in ((0.0, 0), (0.8, 0), (0.8, 1), (0.8, 2)):
                    prompt = "tell me " * count + end
                    request = Generate(
                        prompt=prompt, max_tokens=14, ignore_eos=True, temperature=temperature, seed=seed, n=2
                    )
                    _, completion = await answer(engine, request)
                    wanted[question(request)] = [choice.token_ids for choice in completion.choices]
    return wanted


class Chaos:
    """Clients, and somebody who is after the replica. What they do follows from one seed."""

    def __init__(self, node: Node, wanted: dict[tuple[Any, ...], list[tuple[int, ...]]], victim: str) -> None:
        self.node = node
        self.victim = victim
        self.scheduler = node.actor("engine.scheduler")
        self.wanted = wanted
        self.chance = random.Random(11)
        self.num_right = 0
        self.num_left = 0

    async def run(self) -> None:
        room = anyio.Semaphore(AT_ONCE)
        async with anyio.create_task_group() as clients:
            for number in range(NUM_CLIENTS):
                await room.acquire()
                clients.start_soon(self._client, number, room)
                replica: Any = self.node.actors[self.victim]
                if number in (250, 600):
                    replica.crash(RuntimeError("a test"))
                if number in (400, 800):
                    replica.finish()  # a clean end; its supervisor starts it again

    async def _client(self, number: int, room: anyio.Semaphore) -> None:
        try:
            if number % 20 == 0:
                await self._reader()
            else:
                await self._asker()
        finally:
            room.release()

    async def _asker(self) -> None:
        request, patience = make_request(self.chance), self.chance.choice([0, 1, 4, 1000, 1000, 1000])
        async with self.scheduler.stream(request) as pieces:
            for _ in range(patience):
                try:
                    await anext(pieces)
                except StopAsyncIteration:
                    self._check(request, pieces.result)
                    return
        self.num_left += 1

    def _check(self, request: Generate, completion: Completion) -> None:
        seed = request.seed if request.temperature else 0
        expected = self.wanted[(request.prompt, request.temperature, seed)]
        count = request.max_tokens
        assert [choice.token_ids for choice in completion.choices] == [ids[:count] for ids in expected[: request.n]]
        if request.prompt_logprobs is not None:
            assert len(completion.prompt_logprobs) == completion.usage.prompt_tokens - 1
        self.num_right += 1

    async def _reader(self) -> None:
        text = "tell me " * self.chance.randrange(1, 6)
        if self.chance.random() < 0.5:
            assert len((await self.scheduler.ask(Embed(texts=(text, text + "a")))).vectors) == 2
        else:
            scores = await self.scheduler.ask(Score(contexts=(text, text), continuations=("a", "bc")))
            assert [score.num_tokens for score in scores.texts] == [2, 3]


@pytest.mark.parametrize(("guesses", "replicas"), [(False, 1), (True, 1), (False, 2)])
async def test_a_thousand_clients_who_come_and_go_leave_nothing_behind(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, guesses: bool, replicas: int
) -> None:
    wanted = await undisturbed(tiny_path)
    # The model itself guesses ahead, so most guesses are right.
    draft = str(tiny_path) if guesses else ""
    Flaky(monkeypatch, lambda number, _: number in (100, 101, 700, 1500))
    async with Node("chaos", round_trip=through_the_wire) as node:
        await node.spawn(
            Engine, EngineConfig(model=str(tiny_path), draft=draft, replicas=replicas, **OPTIONS), name="engine"
        )
        chaos = Chaos(node, wanted, "engine.replica" if replicas == 1 else "engine.replica-0")
        await chaos.run()
        stats = await idle(chaos.scheduler)
        cell: Any = node.actors["engine.scheduler"]
        for lane in cell._instance._lanes:
            lane.planner.check_integrity()
        assert cell.restarts == 0
    assert chaos.num_right > NUM_CLIENTS // 3
    assert chaos.num_left > NUM_CLIENTS // 5
    assert stats.requests == stats.finished + stats.aborted
    assert stats.failed == 0
    assert stats.aborted > NUM_CLIENTS // 10
    assert stats.replica_failures >= 5
    assert stats.preemptions > 10
    assert stats.evictions > 100
    assert stats.cached_tokens > 1000
    assert stats.accepted_tokens > 100 if guesses else not stats.drafted_tokens
