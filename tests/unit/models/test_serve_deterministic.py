"""Deterministic answers through the whole engine: the same tokens and log-probabilities, to the last bit, whatever else
is served, however prompts are divided, and whatever happens on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import msgspec
import pytest
from serving import Flaky, answer, idle, requests, serving

from callboard.runtime.refs import Ref
from callboard.schemas.serve import Generate, TokenLogprob
from callboard.schemas.serve_stats import EngineStats, GetStats

pytestmark = pytest.mark.anyio

# Greedy and drawn; the last ones repeat themselves, so that what follows can be guessed.
PROMPTS = ("abc", "tell me a story about a long prompt of several blocks", "hello " * 9, "tell me " * 7)
WANTED = [
    Generate(
        prompt=prompt,
        max_tokens=24,
        ignore_eos=True,
        deterministic=True,
        temperature=index % 2 * 0.7,
        seed=index,
        logprobs=2,
    )
    for index, prompt in enumerate(PROMPTS)
]

Said = tuple[tuple[int, ...], tuple[TokenLogprob, ...]]


class Model(NamedTuple):
    """A model, what it runs on, and options that go with it."""

    path: Path
    kernels: str
    options: dict[str, Any]


@pytest.fixture(scope="module", params=["torch", "native"])
def model(request: pytest.FixtureRequest) -> Model:
    """On the kernels of torch, where only deterministic requests are computed alone, and on the native ones."""
    if request.param == "torch":
        return Model(request.getfixturevalue("tiny_path"), "torch", {"block_size": 4, "num_blocks": 128})
    return Model(request.getfixturevalue("native_path"), "native", {"block_size": 16, "num_blocks": 64})


ALONE: dict[str, list[Said]] = {}


@pytest.fixture
async def alone(model: Model) -> list[Said]:
    """What each request hears when nobody else is served, and nothing is planned ahead, guessed or found computed."""
    if model.kernels not in ALONE:
        said = []
        for request in WANTED:
            async with serving(model.path, **model.options, overlap=False) as scheduler:
                said.append(await ask(scheduler, request))
                stats = await scheduler.ask(GetStats())
                assert [replica.kernels for replica in stats.replicas] == [model.kernels]
        ALONE[model.kernels] = said
    return ALONE[model.kernels]


async def ask(scheduler: Ref, request: Generate) -> Said:
    ids, completion = await answer(scheduler, request)
    assert len(completion.choices[0].logprobs) == len(ids) == request.max_tokens
    return tuple(ids), completion.choices[0].logprobs


async def ask_all(scheduler: Ref, wanted: list[Generate], crowd: int = 0) -> list[Said]:
    """What requests hear who come at once, with so many others between them."""
    said: list[Said] = [((), ())] * len(wanted)

    async def one(index: int) -> None:
        said[index] = await ask(scheduler, wanted[index])

    async with anyio.create_task_group() as group:
        others: Iterator[Generate] = iter(requests(crowd, ignore_eos=True))
        for index in range(len(wanted)):
            for other, _ in zip(others, range(-(-crowd // len(wanted))), strict=False):
                group.start_soon(answer, scheduler, other)
            group.start_soon(one, index)
    return said


async def test_in_any_company(model: Model, alone: list[Said]) -> None:
    async with serving(model.path, **model.options) as scheduler:
        assert await ask_all(scheduler, WANTED, crowd=8) == alone
        stats = await idle(scheduler)
        assert stats.steps < stats.generated_tokens // 3, "they were computed together"


@pytest.mark.parametrize("overlap", [True, False])
async def test_in_small_chunks_and_after_giving_way(model: Model, alone: list[Said], overlap: bool) -> None:
    """Others of a higher priority come when the answers are on their way; there is room for five at once."""
    few = {"max_batch_tokens": 7, "max_running": 5, "overlap": overlap}
    async with serving(model.path, **{**model.options, **few}) as scheduler:
        async with anyio.create_task_group() as group:

            async def check() -> None:
                assert await ask_all(scheduler, WANTED) == alone

            group.start_soon(check)
            with anyio.fail_after(10):
                # All four are under way for a few steps only, until the first has its 24 tokens; two for most of them.
                while (await scheduler.ask(GetStats())).running < 2:
                    pass
            for other in requests(8, ignore_eos=True, priority=1):
                group.start_soon(answer, scheduler, other)
        assert (await idle(scheduler)).preemptions > 0


async def test_when_the_prompt_and_part_of_the_answer_are_found_computed(model: Model, alone: list[Said]) -> None:
    async with serving(model.path, **model.options) as scheduler:
        assert await ask_all(scheduler, WANTED) == alone
        assert await ask_all(scheduler, WANTED, crowd=4) == alone
        assert (await idle(scheduler)).cached_tokens > 0
        # What others computed with fast arithmetic is not taken for it.
        fast = [msgspec.structs.replace(request, deterministic=False) for request in WANTED]
    async with serving(model.path, **model.options) as scheduler:
        await ask_all(scheduler, fast)
        before = (await scheduler.ask(GetStats())).cached_tokens
        assert await ask(scheduler, WANTED[1]) == alone[1]
        assert (await scheduler.ask(GetStats())).cached_tokens == before


async def test_after_the_replica_died(model: Model, alone: list[Said], monkeypatch: pytest.MonkeyPatch) -> None:
    Flaky(monkeypatch, lambda number, _: number in (3, 20))
    async with serving(model.path, **model.options) as scheduler:
        assert await ask_all(scheduler, WANTED, crowd=4) == alone
        assert (await idle(scheduler)).replica_failures == 2


async def test_after_moving_to_another_replica(
    model: Model, alone: list[Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica that gets the 25th step dies with it; what it computed goes on where the other one is."""
    flaky = Flaky(monkeypatch, lambda number, _: number == 25)
    async with serving(model.path, **model.options, replicas=2) as scheduler:
        assert await ask_all(scheduler, WANTED, crowd=4) == alone
        assert (await idle(scheduler)).replica_failures == 1
        assert flaky.num_steps > 25


@pytest.mark.parametrize("overlap", [True, False])
async def test_with_guesses(model: Model, alone: list[Said], overlap: bool) -> None:
    async with serving(model.path, **model.options, draft="ngram", overlap=overlap) as scheduler:
        assert [await ask(scheduler, request) for request in WANTED] == alone
        assert await ask_all(scheduler, WANTED, crowd=4) == alone
        stats: EngineStats = await idle(scheduler)
        assert stats.drafted_tokens > stats.accepted_tokens > 0, "some were right and some were wrong"
