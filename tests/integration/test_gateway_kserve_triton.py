"""Triton's own Python clients, unmodified, talk with a model of the company: HTTP and gRPC, sync, asyncio, streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from gateways import gateway, idle, start_engine
from google.protobuf.descriptor import Descriptor
from test_gateway_kserve_grpc import grpc_gateway

from callboard.actors.gateway.kserve.proto import inference_pb2
from callboard.runtime.node import Node
from callboard.schemas.serve import Generate

pytestmark = [pytest.mark.anyio, pytest.mark.foreign, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"


@pytest.fixture(scope="module")
def python() -> Path:
    """That of `.venv-peers/tritonclient`, which is made if it is not what its requirements say."""
    folder = ROOT / ".venv-peers" / "tritonclient"
    wanted = PEERS / "requirements-tritonclient.txt"
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(wanted)]
        subprocess.run(pip, check=True)
        stamp.write_text(wanted.read_text())
    return python


async def test_triton_clients_are_at_home(node: Node, long_path: Path, python: Path) -> None:
    await start_engine(node, long_path)
    models = {"small": "engine.scheduler"}
    async with gateway(node, models=models) as url, grpc_gateway(node) as target:
        command = [str(python), str(PEERS / "triton_clients.py"), url.removeprefix("http://"), target, "small"]
        done = await anyio.run_process(command, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    told = json.loads(done.stdout)
    known = [
        (await node.actor("engine").ask(Generate(prompt=prompt, max_tokens=8, temperature=0.9, seed=4))).text
        for prompt in ("hello", "all")
    ]
    for way, count, code in (("http", 5, "404"), ("grpc", 3, "StatusCode.NOT_FOUND")):
        here = told[way]
        assert here["texts"] == [known] * count
        assert (here["live"], here["ready"], here["model"], here["other"], here["listed"]) == (1, 1, 1, 0, 1)
        assert here["refused"].startswith(f"{code}: there is no model 'nobody'; there are:")
    assert told["grpc"]["streamed"] == known
    assert "there is no model 'nobody'" in told["grpc"]["refused in a stream"]
    assert told["aio"] == {"texts": [known, known], "streamed": known[0]}
    assert (await idle(node)).aborted == 1  # the request of the stream that was stopped

    theirs = told["fields"]
    for kind in inference_pb2.DESCRIPTOR.message_types_by_name.values():
        _same_numbers(kind, theirs)


def _same_numbers(kind: Descriptor, theirs: dict[str, Any]) -> None:
    numbers = theirs[kind.full_name]
    assert {one.name: [one.number, one.type] for one in kind.fields}.items() <= numbers.items()
    for inner in kind.nested_types:
        _same_numbers(inner, theirs)
