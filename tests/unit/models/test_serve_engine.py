"""The engine as its clients see it: a real node, the real actors, a tiny random model (and SmolLM2 once)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import anyio
import pytest
from serving import Flaky, answer, answers, idle, requests, serving

from callboard.actors.models.store import ModelStore
from callboard.actors.serve.engine import Engine, EngineConfig
from callboard.actors.serve.errors import Overloaded, ReplicaLost
from callboard.actors.serve.replica import Replica
from callboard.runtime.errors import ConfigError, DeadlineExceeded, ModelDamaged, NoSuchModel, RequestInvalid
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.serve import ChatMessage, FinishReason, Generate
from callboard.schemas.serve_stats import GetStats

pytestmark = pytest.mark.anyio


@pytest.fixture
def damaged_path(tiny_path: Path, tmp_path: Path) -> Path:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(tiny_path.read_bytes()[:10_000])
    return path


async def test_streams_at_once_say_what_each_says_alone(tiny_path: Path) -> None:
    wanted = requests(9, ignore_eos=True)
    async with serving(tiny_path, max_running=6) as scheduler:
        alone = [(await answer(scheduler, request))[0] for request in wanted]
        assert await answers(scheduler, wanted) == alone
        assert [len(ids) for ids in alone] == [request.max_tokens for request in wanted]
        stats = await idle(scheduler)
        assert (stats.requests, stats.finished, stats.failed, stats.aborted) == (18, 18, 0, 0)
        assert stats.generated_tokens == 2 * sum(map(len, alone))


@pytest.mark.parametrize("overlap", [True, False])
async def test_scarce_blocks_and_small_steps_change_nothing_but_the_time(tiny_path: Path, overlap: bool) -> None:
    wanted = requests(6, ignore_eos=True)
    async with serving(tiny_path, overlap=not overlap) as scheduler:
        expected = await answers(scheduler, wanted)
    few = {"num_blocks": 14, "max_batch_tokens": 7, "max_running": 5}
    async with serving(tiny_path, overlap=overlap, **few) as scheduler:
        assert await answers(scheduler, wanted) == expected
        assert (await idle(scheduler)).preemptions > 0


async def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(tiny_path: Path) -> None:
    def request(seed: int | None) -> Generate:
        return Generate(prompt="x", max_tokens=20, temperature=1.0, seed=seed, ignore_eos=True)

    async with serving(tiny_path) as scheduler:
        first, again, other, own, another = [
            (await answer(scheduler, request(seed)))[0] for seed in (1, 1, 2, None, None)
        ]
    assert first == again
    assert len({tuple(ids) for ids in (first, other, own, another)}) == 4


async def test_a_stop_string_ends_the_answer_before_it(tiny_path: Path) -> None:
    async with serving(tiny_path) as scheduler:
        _, whole = await answer(scheduler, Generate(prompt="abc", max_tokens=30, ignore_eos=True))
        stop = whole.text[12:15]
        _, cut = await answer(scheduler, Generate(prompt="abc", max_tokens=30, ignore_eos=True, stop=("zzzz", stop)))
    assert cut.finish_reason is FinishReason.STOP
    assert whole.finish_reason is FinishReason.LENGTH
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.usage.completion_tokens < whole.usage.completion_tokens


async def test_the_end_of_turn_ends_the_answer_and_is_not_part_of_its_text(tiny_path: Path) -> None:
    """Drawn at random, the end of turn (id 1) comes up sooner or later."""
    async with serving(tiny_path) as scheduler:
        seed = 0
        ids, completion = await answer(scheduler, Generate(prompt="abc", max_tokens=1))
        while completion.finish_reason is not FinishReason.STOP:
            seed += 1
            request = Generate(prompt="abc", max_tokens=200, temperature=3.0, seed=seed)
            ids, completion = await answer(scheduler, request)
    assert ids[-1] == 1
    assert "<|im_end|>" not in completion.text


async def test_usage_and_timings_are_told(tiny_path: Path) -> None:
    async with serving(tiny_path) as scheduler:
        _, completion = await answer(scheduler, Generate(messages=(ChatMessage("user", "hi"),), max_tokens=5))
        single = await scheduler.ask(Generate(prompt="abc", max_tokens=1, ignore_eos=True))
    # <|im_start|> u s e r \n h i <|im_end|> <|im_start|> a s s i s t a n t \n
    assert completion.usage.prompt_tokens == 20
    assert completion.timings.ttft_ms > 0
    assert completion.timings.tokens_per_s > 0
    assert single.usage.completion_tokens == 1
    assert single.timings.tokens_per_s == pytest.approx(1000 / single.timings.ttft_ms, rel=0.01)


async def test_a_caller_who_goes_away_leaves_no_blocks_behind(tiny_path: Path) -> None:
    request = Generate(prompt="abc", max_tokens=200, ignore_eos=True)
    async with serving(tiny_path) as scheduler:
        async with scheduler.stream(request) as pieces:
            await anext(pieces)
            assert (await scheduler.ask(GetStats())).free_blocks < 64
        assert (await idle(scheduler)).aborted == 1
        with pytest.raises(DeadlineExceeded):
            await scheduler.ask(Generate(prompt="abc", max_tokens=250, ignore_eos=True), timeout=0.05)
        assert (await idle(scheduler)).aborted == 2


async def test_a_full_queue_says_so_and_takes_nothing(tiny_path: Path) -> None:
    request = Generate(prompt="abc", max_tokens=200, ignore_eos=True)
    async with serving(tiny_path, max_running=1, max_waiting=1) as scheduler:
        async with scheduler.stream(request) as running:
            await anext(running)
            async with scheduler.stream(request) as waiting:
                with anyio.fail_after(10):
                    while not (await scheduler.ask(GetStats())).waiting:
                        pass
                with pytest.raises(Overloaded) as caught:
                    await scheduler.ask(request)
                assert "in about" not in caught.value.hint, "nothing has been measured yet"
                assert (await scheduler.ask(GetStats())).refused == 1
                await waiting.aclose()
        assert (await idle(scheduler)).requests == 2


async def test_who_is_refused_hears_how_long_it_takes_at_the_rate_that_is_measured(tiny_path: Path) -> None:
    request = Generate(prompt="abc", max_tokens=200, ignore_eos=True)
    async with serving(tiny_path, max_running=1, max_waiting=1) as scheduler:
        for _ in range(3):
            await scheduler.ask(Generate(prompt="abc", max_tokens=1))
        async with scheduler.stream(request) as running, scheduler.stream(request) as waiting:
            await anext(running)
            with pytest.raises(Overloaded, match="1 requests are waiting") as caught:
                await scheduler.ask(request)
            assert "ask again in about 1 s" in caught.value.hint
            await waiting.aclose()


async def test_a_bad_request_is_refused_and_the_others_go_on(tiny_path: Path) -> None:
    async with serving(tiny_path, num_blocks=8) as scheduler:
        async with scheduler.stream(Generate(prompt="abc", max_tokens=20, ignore_eos=True)) as pieces:
            await anext(pieces)
            for bad in (
                Generate(prompt="abc", temperature=float("nan")),
                Generate(prompt=""),
                Generate(prompt="x" * 300),
                Generate(prompt="abc", max_tokens=100),
            ):
                with pytest.raises(RequestInvalid):
                    await scheduler.ask(bad)
            async for _ in pieces:
                pass
            assert pieces.result.usage.completion_tokens == 20
        assert (await idle(scheduler)).requests == 1


async def test_streams_survive_a_replica_that_dies_with_the_same_tokens(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = requests(4, ignore_eos=True)
    async with serving(tiny_path) as scheduler:
        expected = await answers(scheduler, wanted)
    Flaky(monkeypatch, lambda number, _: number in (2, 7))
    async with serving(tiny_path) as scheduler:
        assert await answers(scheduler, wanted) == expected
        stats = await idle(scheduler)
        assert (stats.replica_failures, stats.failed) == (2, 0)


async def test_a_request_that_kills_every_replica_fails_and_the_engine_goes_on(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Flaky(monkeypatch, lambda _, step: any(part.num_tokens == 13 for part in step.sequences))
    async with serving(tiny_path) as scheduler:
        with pytest.raises(ReplicaLost, match="died 3 times"):
            await scheduler.ask(Generate(prompt="x" * 13, max_tokens=4))
        completion = await scheduler.ask(Generate(prompt="x" * 12, max_tokens=4, ignore_eos=True))
        assert completion.usage.completion_tokens == 4
        assert (await idle(scheduler)).failed == 1


async def test_a_replica_that_is_stopped_and_started_again_is_found(tiny_path: Path) -> None:
    async with Node("test") as node:
        config = EngineConfig(model=str(tiny_path), num_blocks=64, threads=1)
        await node.spawn(Engine, config, name="engine")
        request = Generate(prompt="abc", max_tokens=100, ignore_eos=True)
        expected, _ = await answer(node.actor("engine"), request)
        async with node.actor("engine").stream(request) as pieces:
            ids = list((await anext(pieces)).token_ids)
            node.actors["engine.replica"].crash(RuntimeError("a test"))  # type: ignore[attr-defined]
            async for piece in pieces:
                ids += piece.token_ids
        assert ids == expected


async def test_what_waits_for_a_replica_that_does_not_come_back_fails_and_the_next_one_is_served(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.actors.serve.lane.LOOK_FOR_S", 0.3)
    monkeypatch.setattr("callboard.actors.serve.lane.LOOK_EVERY_S", 0.02)
    request = Generate(prompt="abc", max_tokens=10, ignore_eos=True)
    async with Node("test") as node:
        engine = await node.spawn(Engine, EngineConfig(model=str(tiny_path), num_blocks=64, threads=1), name="engine")
        expected, _ = await answer(engine, request)
        replica: Any = node.actors["engine.replica"]
        await node.stop("engine.replica")
        with pytest.raises(ReplicaLost, match="has been away"):
            await engine.ask(request)
        cell: Any = node.actors["engine"]
        answered: list[list[int]] = []
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                answered.append((await answer(engine, request))[0])

            group.start_soon(ask)
            await cell._instance.spawn(Replica, replica.config, name="replica")
        assert answered == [expected]


async def test_random_arrivals_departures_and_deaths_end_with_every_block_free(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(4)
    Flaky(monkeypatch, lambda number, _: number in (5, 31, 60))

    async def client(scheduler: Ref, request: Generate, patience: int) -> None:
        async with scheduler.stream(request) as pieces:
            for _ in range(patience):
                try:
                    await anext(pieces)
                except StopAsyncIteration:
                    assert pieces.result.usage.completion_tokens == request.max_tokens
                    return

    async with serving(tiny_path, num_blocks=40, max_running=5, max_batch_tokens=16) as scheduler:
        async with anyio.create_task_group() as group:
            for request in requests(60, ignore_eos=True, max_tokens=25):
                group.start_soon(client, scheduler, request, chance.choice([0, 1, 5, 1000]))
                if chance.random() < 0.3:
                    await anyio.lowlevel.checkpoint()
        stats = await idle(scheduler)
        assert stats.replica_failures == 3
        assert stats.finished > 0
        assert stats.aborted > 0
        assert stats.failed == 0


async def test_the_engine_itself_answers_too(tiny_path: Path) -> None:
    async with Node("test") as node:
        engine = await node.spawn(Engine, EngineConfig(model=str(tiny_path), threads=1), name="engine")
        ids, _ = await answer(engine, Generate(prompt="abc", max_tokens=5, ignore_eos=True))
        assert len(ids) == 5
        stats = await engine.ask(GetStats())
        assert stats.model == str(tiny_path)
        assert stats.context_length == 256
        # One GiB or a quarter of the free memory, in blocks of 16 tokens.
        assert stats.num_blocks * 16 >= stats.context_length


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "none"}, NoSuchModel),
        ({"model": "damaged.gguf"}, ModelDamaged),
        ({"dtype": "float12"}, ConfigError),
        ({"max_batch_tokens": 8, "max_running": 9}, ConfigError),
    ],
)
async def test_what_cannot_be_served_fails_at_the_start(
    tiny_path: Path, damaged_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    fields: dict[str, Any] = {"model": str(tiny_path), "models_folder": str(damaged_path.parent), **options}
    if fields["model"] == "damaged.gguf":
        fields["model"] = str(damaged_path)
    async with Node("test") as node:
        with pytest.raises(error):
            await node.spawn(Engine, EngineConfig(**fields), name="engine")


async def test_smollm2_answers(smollm2_store: ModelStore) -> None:
    question = (ChatMessage("user", "What is the capital of France? Answer in one sentence."),)
    async with serving("smollm2", models_folder=str(smollm2_store.root), block_size=16) as scheduler:
        completion = await scheduler.ask(Generate(messages=question, max_tokens=40))
    assert "Paris" in completion.text
    assert completion.finish_reason is FinishReason.STOP
