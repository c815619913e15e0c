"""Groups of layers in processes of their own, beside each other, over a real bus."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest

from callboard.actors.quantize.quantizer import Quantizer
from callboard.runtime.errors import CallboardError
from callboard.runtime.node import Node
from callboard.schemas.quantize import Quantize, QuantizeProgress

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


def request(model: Path, out: Path, layers_per_actor: int) -> Quantize:
    return Quantize(
        model=str(model), out=str(out), group_size=16, samples=8, length=64, layers_per_actor=layers_per_actor
    )


async def test_groups_in_processes_write_a_whole_model(node: Node, tiny_path: Path, tmp_path: Path) -> None:
    quantizer = await node.spawn(Quantizer, name="quantizer")
    heard: list[QuantizeProgress] = []
    async with quantizer.stream(request(tiny_path, tmp_path / "out", 1)) as stream:
        async for progress in stream:
            heard.append(progress)
        report = stream.result
    assert sorted(one.done for one in heard if one.stage == "layers") == [1, 2]
    assert {error.layer for error in report.errors} == {0, 1}
    assert report.perplexity_after > 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3
    assert [name for name in node.actors if "layers" in name] == []


async def kill_a_group(node: Node) -> None:
    """The first whose process is there. Before that its number is 0, and a signal to that would be one to us all."""
    with anyio.fail_after(30):
        while not (
            pids := [actor.info().pid for name, actor in node.actors.items() if is_group(name, actor.info().pid)]
        ):
            await anyio.sleep(0.01)
    os.kill(pids[0], signal.SIGKILL)


def is_group(name: str, pid: int) -> bool:
    return "layers" in name and pid > 0 and pid != os.getpid()


async def test_a_killed_process_fails_the_request_and_the_next_succeeds(
    node: Node, tiny_path: Path, tmp_path: Path
) -> None:
    quantizer = await node.spawn(Quantizer, name="quantizer")
    wanted = request(tiny_path, tmp_path / "out", 1)
    async with anyio.create_task_group() as group:
        group.start_soon(kill_a_group, node)
        with pytest.raises(CallboardError):
            await quantizer.ask(wanted, timeout=50)
    assert "out" not in os.listdir(tmp_path)
    report = await quantizer.ask(wanted, timeout=50)
    assert {error.layer for error in report.errors} == {0, 1}
    assert "report.json" in os.listdir(tmp_path / "out")
