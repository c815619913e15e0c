"""What can be asked beside one answer: several, the best of several, probabilities, conversations, vectors, scores."""

from __future__ import annotations

import math
from pathlib import Path
from string import ascii_lowercase
from typing import Any, ClassVar

import anyio
import pytest
from serving import Flaky, answer, answers, idle, requests, serving

from callboard.actors.models.loading import load_model
from callboard.actors.serve.engine import Engine, EngineConfig
from callboard.actors.serve.intake import choice_seed
from callboard.actors.serve.runner import Runner
from callboard.runtime.errors import CallboardError, ModelDamaged, RequestInvalid
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.serve import (
    AdapterInfo,
    CloseSession,
    Embed,
    Generate,
    ListAdapters,
    LoadAdapter,
    Pooling,
    Score,
    UnloadAdapter,
)
from callboard.schemas.serve_stats import GetStats
from callboard.schemas.serve_steps import Drawn, FailedSequence, Step, StepResult

pytestmark = pytest.mark.anyio

PROMPT = "Once upon a time there was a"


# Several answers


async def test_each_of_several_answers_is_what_its_own_seed_draws(tiny_path: Path) -> None:
    request = Generate(prompt=PROMPT, max_tokens=12, temperature=1.0, seed=7, n=3, ignore_eos=True)
    async with serving(tiny_path) as scheduler:
        _, several = await answer(scheduler, request)
        for index, choice in enumerate(several.choices):
            alone = Generate(prompt=PROMPT, max_tokens=12, temperature=1.0, seed=choice_seed(7, index), ignore_eos=True)
            assert (await answer(scheduler, alone))[0] == list(choice.token_ids)
    assert len({choice.token_ids for choice in several.choices}) == 3
    assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (25, 36)
    assert several.text == several.choices[0].text


async def test_several_answers_share_the_blocks_of_their_prompt(tiny_path: Path) -> None:
    prompt = "x" * 40
    async with serving(tiny_path) as scheduler:
        async with scheduler.stream(Generate(prompt=prompt, max_tokens=30, n=4, ignore_eos=True)) as pieces:
            seen: set[int] = set()
            while len(seen) < 4:
                seen.add((await anext(pieces)).index)
            stats = await scheduler.ask(GetStats())
            assert stats.running == 4
            # Nine of its ten blocks can be shared, since a token is left to compute; 30 more tokens each.
            assert stats.num_blocks - stats.free_blocks <= 9 + 4 * (1 + 8)
        assert (await idle(scheduler)).cached_tokens == 3 * 36


async def test_the_best_of_several_are_those_of_the_highest_mean_probability(tiny_path: Path) -> None:
    fields: dict[str, Any] = {
        "prompt": PROMPT, "max_tokens": 8, "temperature": 1.5, "seed": 3, "ignore_eos": True
    }  # fmt: skip
    async with serving(tiny_path) as scheduler:
        _, every = await answer(scheduler, Generate(**fields, n=5, logprobs=0))
        pieces = 0
        async with scheduler.stream(Generate(**fields, n=2, best_of=5)) as stream:
            async for _ in stream:
                pieces += 1
            best = stream.result
    means = [sum(entry.logprob for entry in choice.logprobs) / 8 for choice in every.choices]
    order = sorted(range(5), key=lambda index: -means[index])
    assert [choice.token_ids for choice in best.choices] == [every.choices[index].token_ids for index in order[:2]]
    assert [choice.likelihood for choice in best.choices] == pytest.approx([means[index] for index in order[:2]])
    assert pieces == 2, "nothing is handed out before it is known which ones are the best"
    assert not best.choices[0].logprobs
    assert best.usage.completion_tokens == 40


async def test_probabilities_are_told_with_the_pieces_and_at_the_end(tiny_path: Path) -> None:
    request = Generate(prompt=PROMPT, max_tokens=10, logprobs=3, prompt_logprobs=1, ignore_eos=True)
    async with serving(tiny_path) as scheduler:
        entries = []
        async with scheduler.stream(request) as stream:
            async for piece in stream:
                assert [entry.token_id for entry in piece.logprobs] == list(piece.token_ids)
                entries += piece.logprobs
            completion = stream.result
        _, bare = await answer(scheduler, Generate(prompt=PROMPT, max_tokens=10, ignore_eos=True))
    (choice,) = completion.choices
    assert choice.logprobs == tuple(entries)
    for entry in entries:
        assert len(entry.top) == 3
        assert entry.top[0] == (entry.token_id, entry.logprob), "the likeliest one was taken"
        assert entry.logprob <= 0
    assert len(completion.prompt_logprobs) == completion.usage.prompt_tokens - 1
    assert choice.likelihood == pytest.approx(sum(entry.logprob for entry in entries) / 10)
    assert bare.choices[0].likelihood is None
    assert not bare.choices[0].logprobs
    assert not bare.prompt_logprobs


async def test_an_answer_is_not_ended_before_its_least_length(tiny_path: Path) -> None:
    """Drawn at random, the end of turn comes up sooner or later, but not in the first tokens."""
    async with serving(tiny_path, num_blocks=200) as scheduler:
        wanted = [
            Generate(prompt="abc", max_tokens=150, min_tokens=20, temperature=3.0, seed=seed) for seed in range(30)
        ]
        lengths = [len(ids) for ids in await answers(scheduler, wanted)]
    assert min(lengths) >= 20
    assert min(lengths) < 150


# Conversations


async def test_a_next_turn_computes_only_what_is_new_whoever_else_comes_between(tiny_path: Path) -> None:
    said = tuple(range(10, 35))
    async with serving(tiny_path) as scheduler:
        ids, first = await answer(scheduler, Generate(prompt_ids=said, max_tokens=9, session="a", ignore_eos=True))
        assert first.usage.cached_tokens == 0
        stats = await idle(scheduler)
        # 34 tokens, of which the last was never computed.
        assert (stats.sessions, stats.pinned_blocks) == (1, 8)
        for seed in range(8):  # others push everything out that is not pinned
            await answer(scheduler, Generate(prompt=f"{seed}" * 150, max_tokens=2, ignore_eos=True))
        assert (await idle(scheduler)).evictions > 0
        turn = Generate(prompt_ids=(*said, *ids, 40, 41), max_tokens=1, session="a", ignore_eos=True)
        _, second = await answer(scheduler, turn)
        assert (second.usage.prompt_tokens, second.usage.cached_tokens) == (36, 32)
        assert (await scheduler.ask(CloseSession("a"))).known
        assert not (await scheduler.ask(CloseSession("a"))).known
        assert (await idle(scheduler)).pinned_blocks == 0


async def test_a_turn_that_was_broken_off_is_kept_too(tiny_path: Path) -> None:
    async with serving(tiny_path) as scheduler:
        async with scheduler.stream(Generate(prompt=PROMPT, max_tokens=150, session="a", ignore_eos=True)) as pieces:
            await anext(pieces)
        stats = await idle(scheduler)
        assert stats.aborted == 1
        assert stats.pinned_blocks >= 6


async def test_a_conversation_outlives_the_replica(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [Generate(prompt=PROMPT * count, max_tokens=6, session="a", ignore_eos=True) for count in (1, 2, 3)]
    async with serving(tiny_path) as scheduler:
        expected = [(await answer(scheduler, turn))[0] for turn in turns]
    flaky = Flaky(monkeypatch, lambda number, _: number == 8)
    async with serving(tiny_path) as scheduler:
        assert [(await answer(scheduler, turn))[0] for turn in turns] == expected
        assert flaky.num_steps > 8
        stats = await idle(scheduler)
        assert (stats.replica_failures, stats.sessions) == (1, 1)


# Texts that are looked at


async def test_scores_are_the_probabilities_that_the_model_gives(tiny_path: Path) -> None:
    async with serving(tiny_path, max_batch_tokens=64, num_blocks=200) as scheduler:
        _, whole = await answer(scheduler, Generate(prompt="abc def gh", max_tokens=1, prompt_logprobs=1))
        request = Score(contexts=("abc def", "abc"), continuations=(" gh", " def gh"), return_tokens=True)
        scores = await scheduler.ask(request)
        alone = await scheduler.ask(Score(continuations=("abc def gh",)))
        with pytest.raises(RequestInvalid):
            await scheduler.ask(Score(continuations=("a",)))
    logprobs = [entry.logprob for entry in whole.prompt_logprobs]
    assert [text.num_tokens for text in scores.texts] == [3, 7]
    for text, count in zip(scores.texts, (3, 7), strict=True):
        assert [entry.logprob for entry in text.tokens] == pytest.approx(logprobs[-count:], abs=1e-5)
        assert text.logprob == pytest.approx(sum(logprobs[-count:]), abs=1e-5)
    mean = (sum(logprobs[-3:]) + sum(logprobs[-7:])) / 10
    assert scores.perplexity == pytest.approx(math.exp(-mean), rel=1e-4)
    assert alone.texts[0].num_tokens == 9
    assert not alone.texts[0].tokens


async def test_a_continuation_is_greedy_if_the_model_would_have_said_it(tiny_path: Path) -> None:
    async with serving(tiny_path) as scheduler:
        said = {prompt: (await scheduler.ask(Generate(prompt=prompt, max_tokens=1))).text for prompt in ascii_lowercase}
        prompt, likeliest = next((p, text) for p, text in said.items() if text.isascii() and text.isalpha())
        other = "a" if likeliest != "a" else "b"
        scores = await scheduler.ask(Score(contexts=(prompt, prompt), continuations=(likeliest, other)))
    assert [text.is_greedy for text in scores.texts] == [True, False]
    assert scores.texts[0].logprob > scores.texts[1].logprob


async def test_the_same_context_is_computed_once_for_all_that_may_follow_it(tiny_path: Path) -> None:
    async with serving(tiny_path, num_blocks=200) as scheduler:
        context = "The quick brown fox jumps over the lazy"
        await scheduler.ask(Score(contexts=(context,) * 4, continuations=(" dog", " cat", " pig", " cow")))
        assert (await idle(scheduler)).cached_tokens >= 3 * 32


async def test_many_more_texts_than_the_queue_holds_are_looked_at_a_few_at_a_time(tiny_path: Path) -> None:
    async with serving(tiny_path, max_running=4, max_waiting=40, num_blocks=200) as scheduler:
        texts = tuple(f"text number {index}" for index in range(150))
        vectors = (await scheduler.ask(Embed(texts=texts))).vectors
        assert len(vectors) == 150
        alone = await scheduler.ask(Embed(texts=(texts[100],)))
    assert alone.vectors[0] == pytest.approx(vectors[100], abs=1e-5)


@pytest.mark.parametrize("pooling", list(Pooling))
async def test_vectors_have_length_one_unless_they_are_wanted_as_they_are(tiny_path: Path, pooling: Pooling) -> None:
    async with serving(tiny_path) as scheduler:
        ask = {"texts": ("abc def", "x" * 100), "pooling": pooling}
        unit = await scheduler.ask(Embed(**ask))
        bare = await scheduler.ask(Embed(**ask, normalize=False))
    assert unit.prompt_tokens == 107
    for vector, other in zip(unit.vectors, bare.vectors, strict=True):
        length = math.sqrt(sum(value * value for value in other))
        assert length != pytest.approx(1.0, abs=1e-3)
        assert vector == pytest.approx([value / length for value in other], abs=1e-5)


async def test_who_goes_away_takes_all_texts_along(tiny_path: Path) -> None:
    texts = tuple(f"text {index} " * 8 for index in range(400))
    async with serving(tiny_path, max_running=2, max_waiting=50, num_blocks=200) as scheduler:
        async with anyio.create_task_group() as group:
            group.start_soon(scheduler.ask, Embed(texts=texts))
            with anyio.fail_after(10):
                while not (await scheduler.ask(GetStats())).running:
                    pass
            group.cancel_scope.cancel()
        assert (await idle(scheduler)).aborted == 1


# Adapters


class Wardrobe:
    """A model whose adapters are names only."""

    loads: ClassVar[list[str]] = []
    breaks: ClassVar[set[str]] = set()

    def __init__(self, model: Any) -> None:
        self.model = model
        self.worn: dict[str, AdapterInfo] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, token_ids: Any, cache: Any, batch: Any, adapters: Any = None, deterministic: bool = False) -> Any:
        assert {name for name in adapters or () if name} <= set(self.worn)
        return self.model.forward(token_ids, cache, batch, None, deterministic)

    def load_adapter(self, name: str, path: Path) -> AdapterInfo:
        if name in self.breaks:
            raise ModelDamaged("a test")
        self.loads.append(name)
        self.worn[name] = AdapterInfo(name, str(path), 8, 100)
        return self.worn[name]

    def unload_adapter(self, name: str) -> None:
        del self.worn[name]

    def adapters(self) -> tuple[AdapterInfo, ...]:
        return tuple(self.worn.values())


@pytest.fixture
def wardrobe(monkeypatch: pytest.MonkeyPatch) -> type[Wardrobe]:
    monkeypatch.setattr(
        "callboard.actors.serve.replica.load_model", lambda path, options: Wardrobe(load_model(path, options))
    )
    monkeypatch.setattr(Wardrobe, "loads", [])
    monkeypatch.setattr(Wardrobe, "breaks", set())
    return Wardrobe


async def test_an_adapter_is_loaded_by_all_replicas_and_again_by_one_that_died(
    tiny_path: Path, wardrobe: type[Wardrobe], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tiny_path, replicas=2) as scheduler:
        loaded = await scheduler.ask(LoadAdapter("a", "/adapters/a"))
        assert [(info.name, info.rank) for info in loaded.adapters] == [("a", 8)]
        assert await scheduler.ask(ListAdapters()) == loaded
        with pytest.raises(RequestInvalid, match="loaded already"):
            await scheduler.ask(LoadAdapter("a", "/adapters/other"))
        ids, _ = await answer(scheduler, Generate(prompt="abc", adapter="a", max_tokens=4, ignore_eos=True))
        flaky = Flaky(monkeypatch, lambda number, _: number == 2)
        again, _ = await answer(scheduler, Generate(prompt="abc", adapter="a", max_tokens=4, ignore_eos=True))
        assert again == ids
        with anyio.fail_after(10):
            while len(wardrobe.loads) < 3:
                await anyio.lowlevel.checkpoint()
        assert flaky.num_steps > 2
        assert (await scheduler.ask(GetStats())).adapters == ("a",)
        assert not (await scheduler.ask(UnloadAdapter("a"))).adapters
        with pytest.raises(RequestInvalid, match="no adapter named 'a'"):
            await scheduler.ask(Generate(prompt="abc", adapter="a"))
        with pytest.raises(RequestInvalid, match="no adapter named 'a'"):
            await scheduler.ask(UnloadAdapter("a"))


async def test_an_adapter_in_use_is_unloaded_when_its_requests_have_ended(
    tiny_path: Path, wardrobe: type[Wardrobe]
) -> None:
    async with serving(tiny_path) as scheduler:
        await scheduler.ask(LoadAdapter("a", "/adapters/a"))
        done: list[str] = []

        async def unload() -> None:
            await scheduler.ask(UnloadAdapter("a"))
            done.append("unloaded")

        async with anyio.create_task_group() as group:
            async with scheduler.stream(Generate(prompt="abc", adapter="a", max_tokens=60, ignore_eos=True)) as pieces:
                await anext(pieces)
                group.start_soon(unload)
                with anyio.fail_after(10), pytest.raises(RequestInvalid, match="being unloaded"):
                    await ask_for_ever(scheduler, Generate(prompt="abc", adapter="a", max_tokens=1))
                async for _ in pieces:
                    pass
                assert pieces.result.usage.completion_tokens == 60
                done.append("answered")
        assert done == ["answered", "unloaded"]


async def ask_for_ever(scheduler: Ref, request: Generate) -> None:
    while True:
        await scheduler.ask(request)


async def test_an_adapter_that_one_replica_cannot_load_is_loaded_by_none(
    tiny_path: Path, wardrobe: type[Wardrobe]
) -> None:
    wardrobe.breaks.add("a")
    async with serving(tiny_path, replicas=2) as scheduler:
        with pytest.raises(ModelDamaged):
            await scheduler.ask(LoadAdapter("a", "/adapters/a"))
        assert not (await scheduler.ask(ListAdapters())).adapters
        with pytest.raises(RequestInvalid, match="needs a name"):
            await scheduler.ask(LoadAdapter("", "/adapters/a"))


# Replicas


async def test_a_scheduler_that_crashed_finds_adapters_and_no_sequences_when_it_begins_anew(
    tiny_path: Path, wardrobe: type[Wardrobe]
) -> None:
    async with Node("test") as node:
        config = EngineConfig(model=str(tiny_path), num_blocks=64, threads=1, replicas=2)
        engine = await node.spawn(Engine, config, name="engine")
        await engine.ask(LoadAdapter("a", "/adapters/a"))
        request = Generate(prompt="abc", adapter="a", max_tokens=200, ignore_eos=True)
        expected, _ = await answer(engine, request)
        cells: list[Any] = [node.actors[f"engine.replica-{index}"] for index in range(2)]
        runners: list[Runner] = [cell._instance._runner for cell in cells]
        async with engine.stream(request) as pieces, engine.stream(Generate(prompt="x", max_tokens=200)) as others:
            await anext(pieces)
            await anext(others)
            assert sum(runner.num_sequences for runner in runners) >= 2
            # One of the replicas loses it meanwhile, and another name for it comes up there.
            runners[1].unload_adapter("a")
            runners[1].load_adapter("b", Path("/adapters/b"))
            scheduler: Any = node.actors["engine.scheduler"]
            scheduler.crash(RuntimeError("a test"))
            with pytest.raises(CallboardError):
                async for _ in pieces:
                    pass
        # Whichever replica is met first says what there is.
        (known,) = [info.name for info in (await engine.ask(ListAdapters())).adapters]
        assert known in ("a", "b")
        with anyio.fail_after(10):
            while len((await engine.ask(GetStats())).replicas) < 2:
                pass
        assert [runner.num_sequences for runner in runners] == [0, 0]
        assert [[info.name for info in runner.adapters().adapters] for runner in runners] == [[known], [known]]
        if known == "a":
            assert (await answer(engine, request))[0] == expected
        else:
            with pytest.raises(RequestInvalid, match="no adapter named 'a'"):
                await engine.ask(request)


async def test_requests_are_divided_over_replicas_and_go_where_their_prompt_is_known(tiny_path: Path) -> None:
    wanted = requests(8, ignore_eos=True)
    async with serving(tiny_path) as scheduler:
        expected = await answers(scheduler, wanted)
    async with serving(tiny_path, replicas=2) as scheduler:
        assert await answers(scheduler, wanted) == expected
        stats = await idle(scheduler)
        assert len(stats.replicas) == 2
        assert len({replica.life for replica in stats.replicas}) == 2
        before = stats.cached_tokens
        for request in wanted:
            _, completion = await answer(scheduler, request)
            assert completion.usage.cached_tokens >= completion.usage.prompt_tokens - 4
        assert (await idle(scheduler)).cached_tokens > before


async def test_a_replica_with_nothing_to_do_takes_what_waits_for_another(tiny_path: Path) -> None:
    """Long and short ones take turns, so all long ones go to the first replica."""
    async with Node("test") as node:
        config = EngineConfig(model=str(tiny_path), num_blocks=64, threads=1, replicas=2, max_running=1)
        engine = await node.spawn(Engine, config, name="engine")
        wanted = [Generate(prompt=f"{i} x", max_tokens=[100, 1][i % 2], ignore_eos=True) for i in range(8)]
        lengths = [len(ids) for ids in await answers(engine, wanted)]
        assert lengths == [100, 1] * 4
        cell: Any = node.actors["engine.scheduler"]
        assert min(lane.planner.num_generated_tokens for lane in cell._instance._lanes) >= 100
        assert (await idle(engine)).finished == 8


async def test_what_ran_on_a_replica_that_dies_goes_on_at_another(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = requests(6, ignore_eos=True, max_tokens=30)
    async with serving(tiny_path) as scheduler:
        expected = await answers(scheduler, wanted)
    Flaky(monkeypatch, lambda number, _: number in (9, 16, 30))
    async with serving(tiny_path, replicas=2) as scheduler:
        assert await answers(scheduler, wanted) == expected
        stats = await idle(scheduler)
        assert stats.replica_failures == 3
        assert stats.failed == 0


async def test_a_sequence_that_cannot_be_computed_ends_only_its_own_request(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = Runner.execute
    bad: set[int] = set()

    def failing(runner: Runner, step: Step) -> StepResult:
        bad.update(part.sequence_id for part in step.sequences if part.start and part.start.sampling.top_k == 7)
        result = execute(runner, step)
        draws = [part.sequence_id for part in step.sequences if part.draws]
        return StepResult(
            result.step_id,
            tuple(Drawn(()) if name in bad else drawn for name, drawn in zip(draws, result.drawn, strict=True)),
            result.seconds,
            failed=tuple(FailedSequence(name, "model.request", "it cannot be") for name in bad & set(draws)),
        )

    monkeypatch.setattr(Runner, "execute", failing)
    async with serving(tiny_path) as scheduler:
        async with anyio.create_task_group() as group:
            group.start_soon(answer, scheduler, Generate(prompt="abc", max_tokens=30, ignore_eos=True))
            with pytest.raises(RequestInvalid, match="it cannot be"):
                await scheduler.ask(Generate(prompt="abcd", top_k=7, n=2))
        stats = await idle(scheduler)
        assert (stats.failed, stats.finished) == (1, 1)


async def test_the_engine_says_how_its_time_is_spent(tiny_path: Path) -> None:
    async with serving(tiny_path) as scheduler:
        await answers(scheduler, requests(5, ignore_eos=True))
        stats = await idle(scheduler)
    assert 0 < stats.plan_seconds < stats.busy_seconds
    assert 0 < stats.compute_seconds <= stats.step_seconds <= stats.busy_seconds + 0.05
    assert stats.steps > 0
    assert stats.cached_blocks > 0
