"""The replica as an actor: lives, steps sent ahead, and adapters between steps."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from callboard.actors.models.errors import NoSuchAdapter
from callboard.actors.models.llama import LlamaDecoder
from callboard.actors.serve.errors import ReplicaChanged
from callboard.actors.serve.replica import Replica, ReplicaConfig
from callboard.actors.serve.runner import Runner
from callboard.runtime.errors import ConfigError, HandlerFailed
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.base import Message
from callboard.schemas.serve import (
    AdapterInfo,
    AskReplica,
    ListAdapters,
    LoadAdapter,
    SequenceStart,
    Step,
    StepResult,
    StepSequence,
    UnloadAdapter,
)

pytestmark = pytest.mark.anyio

PROMPT = SequenceStart(token_ids=(40, 41, 42), num_prompt_tokens=3)


def through_the_wire(message: Message) -> Message:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


def prompt(sequence_id: int, **fields: Any) -> StepSequence:
    return StepSequence(
        sequence_id, 0, 3, (2 * sequence_id, 2 * sequence_id + 1), True, start=msgspec.structs.replace(PROMPT, **fields)
    )


@asynccontextmanager
async def computing(path: Path, **options: Any) -> AsyncIterator[tuple[Node, Ref]]:
    async with Node("test", round_trip=through_the_wire) as node:
        config = ReplicaConfig(path=str(path), num_blocks=16, block_size=4, threads=1, **options)
        yield node, await node.spawn(Replica, config, name="replica")


async def test_a_replica_says_what_it_is(tiny_path: Path) -> None:
    async with computing(tiny_path, draft="ngram", num_draft=3) as (_, replica):
        info = await replica.ask(AskReplica())
    assert (info.num_blocks, info.block_size, info.dtype, info.kernels) == (16, 4, "float32", "torch")
    assert info.cache_bytes == 16 * 4 * 2 * 2 * 2 * 8 * 4  # slots, layers, key and value, heads, their size, float32
    assert info.weight_bytes > 100_000
    assert info.life


async def test_each_start_is_another_life_and_refuses_the_steps_of_the_last(tiny_path: Path) -> None:
    async with computing(tiny_path) as (node, replica):
        life = (await replica.ask(AskReplica())).life
        assert (await replica.ask(Step(1, (prompt(1),), life))).drawn[0].tokens
        node.actors["replica"].crash(RuntimeError("a test"))  # type: ignore[attr-defined]
        with pytest.raises(ReplicaChanged) as caught:
            await replica.ask(Step(2, (StepSequence(1, 3, 1, (), True),), life))
        assert caught.value.hint
        again = (await replica.ask(AskReplica())).life
        assert again != life
        assert (await replica.ask(Step(1, (prompt(1),), again))).drawn[0].tokens


async def test_steps_are_computed_in_the_order_they_come(tiny_path: Path) -> None:
    """Three steps at once, each of which builds on the token that the one before it draws."""
    async with computing(tiny_path) as (_, replica):
        life = (await replica.ask(AskReplica())).life
        steps = [
            Step(1, (prompt(1),), life),
            Step(2, (StepSequence(1, 3, 1, (), True),), life),
            Step(3, (StepSequence(1, 4, 1, (), True),), life),
        ]
        results: list[StepResult | None] = [None] * 3

        async def ask(index: int) -> None:
            results[index] = await replica.ask(steps[index])

        async with anyio.create_task_group() as group:
            for index in range(3):
                group.start_soon(ask, index)
        ahead = [result.drawn[0].tokens[0] for result in results if result is not None]
        whole = [(await replica.ask(Step(4, (prompt(2),), life))).drawn[0].tokens[0]]
        for place in (3, 4):
            whole += (await replica.ask(Step(5, (StepSequence(2, place, 1, (), True),), life))).drawn[0].tokens
    assert ahead == whole


async def test_a_step_that_contradicts_its_books_crashes_it(tiny_path: Path) -> None:
    async with computing(tiny_path) as (_, replica):
        life = (await replica.ask(AskReplica())).life
        with pytest.raises(HandlerFailed, match="cannot be computed"):
            await replica.ask(Step(1, (StepSequence(1, 0, 4, (0,), True, start=PROMPT),), life))
        assert (await replica.ask(AskReplica())).life != life


async def test_adapters_come_and_go_between_steps(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What loading an adapter does to the model is the model's matter; that it happens in its thread is checked."""
    loaded: dict[str, AdapterInfo] = {}
    threads: set[str] = set()

    def load(model: LlamaDecoder, name: str, path: Path) -> AdapterInfo:
        threads.add(threading.current_thread().name)
        return loaded.setdefault(name, AdapterInfo(name, str(path), 8, 100))

    def unload(model: LlamaDecoder, name: str) -> None:
        if name not in loaded:
            raise NoSuchAdapter(f"there is no adapter '{name}'")
        del loaded[name]

    compute = LlamaDecoder.forward

    def forward(model: LlamaDecoder, token_ids: Any, cache: Any, batch: Any, *_: object) -> Any:
        return compute(model, token_ids, cache, batch)

    monkeypatch.setattr(LlamaDecoder, "forward", forward)
    monkeypatch.setattr(LlamaDecoder, "load_adapter", load)
    monkeypatch.setattr(LlamaDecoder, "unload_adapter", unload)
    monkeypatch.setattr(LlamaDecoder, "adapters", lambda model: tuple(loaded.values()))
    async with computing(tiny_path, adapters=(("early", "/somewhere"),)) as (_, replica):
        life = (await replica.ask(AskReplica())).life
        assert [info.name for info in (await replica.ask(ListAdapters())).adapters] == ["early"]
        after = await replica.ask(LoadAdapter("late", "/elsewhere"))
        assert [(info.name, info.path) for info in after.adapters] == [("early", "/somewhere"), ("late", "/elsewhere")]
        assert threads == {"replica_0"}
        result = await replica.ask(Step(1, (prompt(1, adapter="late"), prompt(2, adapter="early")), life))
        assert result.failed == ()
        assert [info.name for info in (await replica.ask(UnloadAdapter("late"))).adapters] == ["early"]
        with pytest.raises(NoSuchAdapter):
            await replica.ask(UnloadAdapter("late"))
        both = (StepSequence(1, 3, 1, (), True), StepSequence(2, 3, 1, (), True))
        result = await replica.ask(Step(2, both, life))
        assert [failed.sequence_id for failed in result.failed] == [1]
        assert [len(drawn.tokens) for drawn in result.drawn] == [0, 1]


async def test_a_draft_that_does_not_fit_is_found_at_the_start(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stranger(*_: object) -> None:
        raise ConfigError("the draft model has another tokenizer")

    monkeypatch.setattr("callboard.actors.serve.replica.load_drafter", stranger)
    with pytest.raises(ConfigError, match="another tokenizer"):
        async with computing(tiny_path, draft="/some/model"):
            pass


async def test_the_process_stays_responsive_while_a_step_is_computed(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()
    execute = Runner.execute

    def slow(runner: Runner, step: Step) -> StepResult:
        entered.set()
        assert leave.wait(30)
        return execute(runner, step)

    monkeypatch.setattr(Runner, "execute", slow)
    async with computing(tiny_path) as (_, replica):
        life = (await replica.ask(AskReplica())).life
        async with anyio.create_task_group() as group:
            group.start_soon(replica.ask, Step(1, (prompt(1),), life))
            await anyio.to_thread.run_sync(entered.wait, 30)
            assert (await replica.ask(AskReplica())).life == life
            leave.set()
