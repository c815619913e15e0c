"""The replica as an actor: lives, steps sent ahead, and adapters between steps."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import torch
from safetensors.torch import save_file

from callboard.actors.models.errors import NoSuchAdapter
from callboard.actors.serve.errors import ReplicaChanged
from callboard.actors.serve.replica import Replica, ReplicaConfig
from callboard.actors.serve.runner import Runner
from callboard.runtime.errors import ConfigError, HandlerFailed
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.base import Message
from callboard.schemas.serve import ListAdapters, LoadAdapter, UnloadAdapter
from callboard.schemas.serve_steps import AskReplica, SequenceStart, Step, StepResult, StepSequence

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


def write_adapter(folder: Path, seed: int) -> Path:
    """A LoRA adapter of rank 2 on the query projection of the tiny model's first layer, strong enough to be seen."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    halves = {f"{module}.lora_A.weight": (2, 48), f"{module}.lora_B.weight": (48, 2)}
    save_file(
        {name: torch.randn(shape, generator=generator) for name, shape in halves.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


async def test_adapters_come_and_go_between_steps(tiny_path: Path, tmp_path: Path) -> None:
    early, late = write_adapter(tmp_path / "early", 1), write_adapter(tmp_path / "late", 2)
    async with computing(tiny_path, adapters=(("early", str(early)),)) as (_, replica):
        life = (await replica.ask(AskReplica())).life
        assert [info.name for info in (await replica.ask(ListAdapters())).adapters] == ["early"]
        after = await replica.ask(LoadAdapter("late", str(late)))
        assert [(info.name, info.path, info.rank) for info in after.adapters] == [
            ("early", str(early), 2),
            ("late", str(late), 2),
        ]
        scored = {"prompt_logprobs": 0}
        parts = (prompt(1, adapter="late", **scored), prompt(2, adapter="early", **scored), prompt(3, **scored))
        result = await replica.ask(Step(1, parts, life))
        assert result.failed == ()
        assert len({scores.tokens[-1].logprob for scores in result.prompt_logprobs}) == 3
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


async def test_who_begins_with_a_replica_finds_no_sequences_of_earlier_schedulers(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was still being computed when it asked. A mere question changes nothing."""
    entered, leave = threading.Event(), threading.Event()
    execute = Runner.execute

    def slow(runner: Runner, step: Step) -> StepResult:
        if step.step_id == 2:
            entered.set()
            assert leave.wait(30)
        return execute(runner, step)

    monkeypatch.setattr(Runner, "execute", slow)
    async with computing(tiny_path) as (node, replica):
        runner: Runner = node.actors["replica"]._instance._runner  # type: ignore[attr-defined]
        life = (await replica.ask(AskReplica())).life
        await replica.ask(Step(1, (prompt(1),), life))
        assert (await replica.ask(AskReplica())).life == life
        assert runner.num_sequences == 1
        async with anyio.create_task_group() as group:
            group.start_soon(replica.ask, Step(2, (prompt(2),), life))
            await anyio.to_thread.run_sync(entered.wait, 30)
            group.start_soon(replica.ask, AskReplica(forget=True))
            await anyio.lowlevel.checkpoint()
            await replica.ask(AskReplica())  # messages are taken in order: that one is waiting by now
            leave.set()
        assert runner.num_sequences == 0
        assert (await replica.ask(Step(3, (prompt(1),), life))).drawn[0].tokens
