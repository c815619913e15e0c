"""Our side of `callboard bench generate`: an engine on a node, asked by its scheduler's address as users ask it.

`python -m callboard.actors.bench.generate_ours CONFIG`, CONFIG being the engine's configuration as JSON. Orders come
as lines on standard input.
"""

from __future__ import annotations

import random
import sys
import time
from importlib.metadata import version

import anyio
import anyio.to_thread
import msgspec

from ...runtime.loops import backend_options
from ...runtime.node import Node
from ...runtime.refs import Ref
from ...schemas.serve import CloseSession, Completion, Generate, Score
from ...schemas.serve_stats import EngineStats, GetStats
from ..serve.engine import Engine, EngineConfig
from .contenders import BatchAnswer, Ready, StepTimes
from .generate_orders import (
    MeasurePerplexity,
    Order,
    PerplexityAnswer,
    RunBatch,
    SecondTurn,
    SecondTurnAnswer,
)
from .machine import kernels_of
from .peers_generate.orders import Batch

# What the first turn of a conversation is answered with.
FIRST_ANSWER = 16


async def main(config: EngineConfig) -> None:
    async with Node("bench") as node:
        await node.spawn(Engine, config, name="engine")
        scheduler = node.actor("engine.scheduler")
        # What a replica is, is known once it has computed something.
        await _answer(scheduler, (0,), 1, "")
        stats = await scheduler.ask(GetStats())
        _say(Ready({"torch": version("torch")}, kernels_of(stats)))
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            match msgspec.json.decode(line, type=Order):
                case RunBatch() as order:
                    _say(await run_batch(scheduler, order))
                case SecondTurn() as order:
                    _say(await second_turn(scheduler, order))
                case MeasurePerplexity(texts):
                    scores = await scheduler.ask(Score(continuations=texts), timeout=None)
                    _say(PerplexityAnswer(scores.perplexity, sum(text.num_tokens for text in scores.texts)))


async def run_batch(scheduler: Ref, order: RunBatch) -> BatchAnswer:
    """All prompts at once, each as a stream of its own."""
    prompts = Batch(order.size, order.prompt, order.output, order.seed, order.vocab_size).prompts()
    outputs: list[list[int]] = [[] for _ in prompts]
    first_s = [0.0] * order.size

    async def one(number: int, prompt: list[int]) -> None:
        request = Generate(
            prompt_ids=tuple(prompt), max_tokens=order.output, ignore_eos=True, deterministic=order.deterministic
        )
        async with scheduler.stream(request) as pieces:
            async for piece in pieces:
                if not outputs[number]:
                    first_s[number] = time.perf_counter() - began
                outputs[number] += piece.token_ids

    before = await scheduler.ask(GetStats())
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for number, prompt in enumerate(prompts):
            group.start_soon(one, number, prompt)
    seconds = time.perf_counter() - began
    after = await scheduler.ask(GetStats())
    lengths = tuple(map(len, outputs))
    return BatchAnswer(seconds, lengths, tuple(ids[0] for ids in outputs), tuple(first_s), _times(before, after))


async def second_turn(scheduler: Ref, order: SecondTurn) -> SecondTurnAnswer:
    """The follow-up of a conversation that its session kept, and the same number of tokens that nobody has seen."""
    numbers = random.Random(order.seed)

    def some(count: int) -> tuple[int, ...]:
        return tuple(numbers.randrange(order.vocab_size) for _ in range(count))

    session = f"bench-{order.seed}"
    history = some(order.history)
    first_ids, _ = await _answer(scheduler, history, FIRST_ANSWER, session)
    follow_up = (*history, *first_ids, *some(order.more))
    _, warm = await _answer(scheduler, follow_up, 1, session)
    await scheduler.ask(CloseSession(session))
    _, cold = await _answer(scheduler, some(len(follow_up)), 1, "")
    return SecondTurnAnswer(cold.timings.ttft_ms, warm.timings.ttft_ms)


async def _answer(scheduler: Ref, prompt: tuple[int, ...], length: int, session: str) -> tuple[list[int], Completion]:
    ids: list[int] = []
    request = Generate(prompt_ids=prompt, max_tokens=length, ignore_eos=True, session=session)
    async with scheduler.stream(request) as pieces:
        async for piece in pieces:
            ids += piece.token_ids
        return ids, pieces.result


def _times(before: EngineStats, after: EngineStats) -> StepTimes:
    return StepTimes(
        after.steps - before.steps,
        after.step_seconds - before.step_seconds,
        after.compute_seconds - before.compute_seconds,
        after.plan_seconds - before.plan_seconds,
        after.busy_seconds - before.busy_seconds,
    )


def _say(answer: msgspec.Struct) -> None:
    print(msgspec.json.encode(answer).decode(), flush=True)


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.argv[1], type=EngineConfig), backend_options=backend_options())
