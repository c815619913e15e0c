"""The same work as messages: a request to an actor, progress as it comes, and a report at the end."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import torch

from callboard.actors.quantize.layer_group import LayerGroup
from callboard.actors.quantize.prepare import prepare
from callboard.actors.quantize.quantizer import Quantizer, QuantizerConfig
from callboard.actors.quantize.run import run
from callboard.runtime.errors import CallboardError, UsageError
from callboard.runtime.node import Node
from callboard.runtime.supervision import Restart
from callboard.schemas.base import Message
from callboard.schemas.quantize import Quantize, QuantizeLayers, QuantizeProgress

pytestmark = pytest.mark.anyio


def through_the_wire(message: Message) -> Message:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


def request(model: Path, out: Path, **options: object) -> Quantize:
    small = {"type": "quantize.run", "group_size": 16, "samples": 8, "length": 64}
    return msgspec.convert({**small, "model": str(model), "out": str(out), **options}, Quantize)


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
async def test_an_actor_writes_the_same_bytes_as_the_command(tiny_path: Path, tmp_path: Path, method: str) -> None:
    heard: list[QuantizeProgress] = []
    async with Node("test", round_trip=through_the_wire) as node:
        quantizer = await node.spawn(Quantizer, name="quantizer")
        async with quantizer.stream(request(tiny_path, tmp_path / "asked", method=method)) as stream:
            async for progress in stream:
                heard.append(progress)
            report = stream.result
        assert not [address for address in node.actors if address.startswith("quantizer.")]
        assert node.blobs.held == 0
    assert [(one.stage, one.done) for one in heard] == [
        ("layers", 1),
        ("layers", 2),
        *(("checking", step) for step in (1, 2, 3, 4)),
    ]
    job, tokens = prepare(request(tiny_path, tmp_path / "called", method=method))
    called = run(job, tokens.calibration, tokens.held_out)
    assert report.perplexity_after == called.perplexity_after
    for shard in (tmp_path / "called").glob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "asked" / shard.name).read_bytes()


async def test_a_wrong_request_is_answered_with_what_is_wrong(tiny_path: Path, tmp_path: Path) -> None:
    async with Node("test", round_trip=through_the_wire) as node:
        quantizer = await node.spawn(Quantizer, name="quantizer")
        with pytest.raises(UsageError, match="no multiple of 32"):
            await quantizer.ask(request(tiny_path, tmp_path / "out", group_size=32))
        assert not os.listdir(tmp_path)


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
async def test_what_was_done_before_a_cancelled_request_is_not_done_again(
    tiny_path: Path, tmp_path: Path, method: str
) -> None:
    wanted = request(tiny_path, tmp_path / "out", method=method)
    async with Node("test", round_trip=through_the_wire) as node:
        quantizer = await node.spawn(Quantizer, name="quantizer")
        async with quantizer.stream(wanted) as stream:
            assert (await anext(stream)).done == 1
        heard: list[QuantizeProgress] = []
        async with quantizer.stream(wanted) as stream:
            async for progress in stream:
                heard.append(progress)
    assert 1 not in [one.done for one in heard if one.stage == "layers"]
    job, tokens = prepare(request(tiny_path, tmp_path / "unbroken", method=method))
    run(job, tokens.calibration, tokens.held_out)
    for shard in (tmp_path / "unbroken").glob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "out" / shard.name).read_bytes()


@pytest.mark.parametrize("is_heard_out", [False, True])
async def test_one_that_is_there_for_one_request_ends_with_it(
    tiny_path: Path, tmp_path: Path, eventually: Callable[[Callable[[], bool]], Awaitable[None]], is_heard_out: bool
) -> None:
    async with Node("test", round_trip=through_the_wire) as node:
        quantizer = await node.spawn(Quantizer, QuantizerConfig(once=True), name="once", restart=Restart.TEMPORARY)
        async with quantizer.stream(request(tiny_path, tmp_path / "out")) as stream:
            async for _ in stream:
                if not is_heard_out:
                    break
        await eventually(lambda: "once" not in node.actors)
    assert (tmp_path / "out").exists() == is_heard_out


async def test_layers_that_a_model_does_not_have_are_refused(tiny_path: Path, tmp_path: Path) -> None:
    from safetensors.torch import save

    job, _ = prepare(request(tiny_path, tmp_path / "out"))
    async with Node("test", round_trip=through_the_wire) as node:
        group = await node.spawn(LayerGroup, name="group")
        hidden = await node.blobs.put(save({"stream": torch.zeros(1, 4, 48)}))
        layers = QuantizeLayers(model=job.model, first=1, last=3, hidden=hidden, recipe=msgspec.json.encode(job.recipe))
        with pytest.raises(CallboardError, match="2 layers"):
            await group.ask(layers)
