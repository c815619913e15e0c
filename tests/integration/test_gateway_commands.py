"""`callboard up --http`, `callboard gateway`, and what `status` says of it, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import grpc
import httpx2
import openai
import psutil
import pydantic
import pytest
from board import Board, gone

from callboard.actors.gateway.kserve.proto import inference_pb2
from callboard.runtime.folders import Paths


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board(Paths.find().create())
    yield board
    board.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"num_blocks": 64, "block_size": 4, "threads": 1, "max_batch_tokens": 64}.items():
        monkeypatch.setenv(f"CALLBOARD_ENGINE_{name.upper()}", str(value))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(url: str, status: int = 200) -> httpx2.Response:
    until = time.monotonic() + 30
    while True:
        try:
            answer = httpx2.get(url)
            if answer.status_code == status:
                return answer
        except httpx2.TransportError:
            pass
        assert time.monotonic() < until
        time.sleep(0.05)  # another process, which tells nobody


@pytest.mark.usefixtures("small")
def test_up_serves_a_model_over_http(board: Board, tiny_path: Path) -> None:
    port = free_port()
    done = board.run("up", "--detach", "--model", str(tiny_path), "--http", f"127.0.0.1:{port}", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    url = f"http://127.0.0.1:{port}"
    daemon = psutil.Process(board.info().daemon_pid)
    assert all(connection.laddr.port != port for connection in daemon.net_connections("tcp"))  # it is held up by none
    assert (said["http"], said["model"], said["pid"]) == (url, str(tiny_path), board.info().pid)
    assert "keys" not in said

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    answer = client.completions.create(model=str(tiny_path), prompt="hello", max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 1
    client.close()
    status = json.loads(board.run("status", "--json").stdout)
    assert status["gateways"] == {"http": url}
    assert f"gateway   {url} (http)" in board.run("status").stdout
    assert json.loads(board.run("gateway", "list", "--json").stdout) == [
        {"name": "http", "kind": "gateway.http", "url": url, "node": "http"}
    ]
    assert board.run("down").returncode == 0
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{url}/health")


class Place(pydantic.BaseModel):
    city: Literal["Delft", "Oslo"]


@pytest.mark.usefixtures("small")
def test_every_sdk_is_at_home_with_what_up_serves(
    board: Board, long_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a person does it: one command, and the clients that everybody has, sync and async, HTTP and gRPC."""
    monkeypatch.setenv("CALLBOARD_ENGINE_NUM_BLOCKS", "300")
    model, say = str(long_path), [{"role": "user", "content": "hello"}]
    ports = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    done = board.run("up", "--detach", "--model", model, *ports, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["grpc"].startswith("grpc://127.0.0.1:")
    assert json.loads(board.run("status", "--json").stdout)["gateways"] == {"http": said["http"], "grpc": said["grpc"]}
    options: Any = {"model": model, "messages": say, "max_tokens": 8, "temperature": 0}

    with openai.OpenAI(base_url=f"{said['http']}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(**options).choices[0].message.content
        chunks = client.chat.completions.create(**options, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
        drawn = {"temperature": 1, "max_tokens": 400, "seed": 3}
        placed = client.chat.completions.parse(**options | drawn, response_format=Place)
        assert isinstance(placed.choices[0].message.parsed, Place)
        assert [one.id for one in client.models.list()] == [model]
        response = client.responses.create(model=model, input="hello", max_output_tokens=8, temperature=0)
        assert response.output_text == whole
        text = client.completions.create(model=model, prompt="hello", max_tokens=8, temperature=0).choices[0].text
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**options | {"model": "gpt-17"})

    async def asynchronously() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{said['http']}/v1", api_key="none", max_retries=0) as client:
            chunks = await client.chat.completions.create(**options, stream=True)
            first = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
        greedy: Any = {"temperature": 0}
        async with anthropic.AsyncAnthropic(base_url=said["http"], api_key="none", max_retries=0) as client:
            asked: Any = {"model": model, "messages": say, "max_tokens": 8, "extra_body": greedy}
            async with client.messages.stream(**asked) as stream:
                return first, "".join([piece async for piece in stream.text_stream])

    assert asyncio.run(asynchronously()) == (whole, whole)
    with anthropic.Anthropic(base_url=said["http"], api_key="none", max_retries=0) as client:
        message = client.messages.create(model=model, messages=say, max_tokens=8, extra_body={"temperature": 0})  # pyright: ignore[reportArgumentType]
        assert message.content[0].text == whole  # pyright: ignore[reportAttributeAccessIssue]

    with grpc.insecure_channel(said["grpc"].removeprefix("grpc://")) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=inference_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=inference_pb2.ModelInferResponse.FromString,
        )
        request = inference_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"hello")
        request.parameters["max_tokens"].int64_param = 8
        assert infer(request).outputs[0].contents.bytes_contents[0].decode() == text
    assert board.run("down").returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_what_up_serves_comes_back_after_kills(board: Board, tiny_path: Path) -> None:
    """Of the gateway's process, then of the daemon's own; at the same port."""
    port = free_port()
    done = board.run("up", "--detach", "--model", str(tiny_path), "--http", str(port))
    url = f"http://127.0.0.1:{port}"
    assert f"http: {url}, for all who reach it\n{tiny_path} is ready" in done.stdout
    info = board.info()

    def gateway() -> list[psutil.Process]:
        return [one for one in board.processes() if any(c.laddr.port == port for c in one.net_connections("tcp"))]

    first = gateway()
    first[0].kill()
    assert gone(first)
    wait_for(f"{url}/ready")
    second = gateway()
    os.kill(info.daemon_pid, signal.SIGKILL)
    assert gone(second)  # it ends with the daemon that started it
    assert wait_for(f"{url}/ready").json()["models"] == [str(tiny_path)]
    assert len(first) == len(second) == 1


def test_a_port_that_is_taken_is_said_and_the_daemon_stays(board: Board) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = board.run("up", "--detach", "--http", f"127.0.0.1:{port}")
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(board.run("status", "--json").stdout)["gateways"] == {}


def test_in_the_foreground_it_ends_where_it_cannot_serve(board: Board) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = board.start("up", "--http", f"127.0.0.1:{port}")
        out, error = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "callboard is up" in out
    assert f"cannot listen on 127.0.0.1:{port}" in error
    assert board.run("status").returncode == 3


def test_in_the_foreground_it_says_where_it_listens(board: Board) -> None:
    process = board.start("up", "--http", "127.0.0.1:0", "--json")
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    assert httpx2.get(f"{said['http']}/health").json()["status"] == "no model"
    process.terminate()
    assert process.wait(20) == 0


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999", "127.0.0.1:", "host:x"])
def test_what_is_no_address_starts_nothing(board: Board, address: str) -> None:
    done = board.run("up", "--detach", "--http", address)
    assert done.returncode == 2
    assert f"'{address}' is no address to listen at" in done.stderr
    assert board.run("status").returncode == 3


def test_keys_are_made_used_and_revoked(board: Board) -> None:
    made = board.run("gateway", "key", "new", "reports", "--scope", "chat", "--requests-per-minute", "2")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert secret.startswith("cb-")
    assert secret not in made.stderr
    other = json.loads(board.run("gateway", "key", "new", "other", "--tokens-per-minute", "9", "--json").stdout)
    file = board.paths.state / "gateway-keys.json"
    assert other["file"] == str(file)

    done = board.run("up", "--detach", "--http", "127.0.0.1:0")
    assert f"keys in {file}" in done.stdout
    url = done.stdout.split("http: ")[1].split(",")[0]
    authorized = {"authorization": f"Bearer {secret}"}
    assert httpx2.get(f"{url}/v1/models").status_code == 401
    assert [httpx2.get(f"{url}/v1/models", headers=authorized).status_code for _ in range(3)] == [200, 200, 429]

    def curl(key: str) -> subprocess.CompletedProcess[str]:
        command = ["curl", "--silent", "--fail-with-body", "-H", f"x-api-key: {key}", f"{url}/v1/models"]
        return subprocess.run(command, capture_output=True, text=True)

    assert json.loads(curl(other["key"]).stdout) == {"object": "list", "data": []}
    assert board.run("gateway", "key", "revoke", "other").returncode == 0
    refused = curl(other["key"])
    assert (refused.returncode, json.loads(refused.stdout)["error"]["code"]) == (22, "gateway.key")
    listed = json.loads(board.run("gateway", "key", "list", "--json").stdout)
    assert [(key["name"], key["state"], key["scopes"]) for key in listed] == [
        ("reports", "good", ["chat"]),
        ("other", "revoked", ["chat", "embeddings"]),
    ]
    assert "hash" not in listed[0]
    assert "reports  good" in board.run("gateway", "key", "list").stdout
    assert board.run("gateway", "key", "revoke", "other").returncode == 2
    assert secret not in board.run("logs", "audit").stdout
    assert "gateway.key.revoke" in board.run("logs", "audit").stdout


def test_a_grpc_gateway_has_the_settings_of_the_table_too(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_GATEWAY_MAX_BODY_MIB", "1")
    board.up()
    url = json.loads(board.run("gateway", "start", "--grpc", "127.0.0.1:0", "--json").stdout)["url"]
    with grpc.insecure_channel(url.removeprefix("grpc://")) as channel:
        ready = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelReady",
            request_serializer=inference_pb2.ModelReadyRequest.SerializeToString,
            response_deserializer=inference_pb2.ModelReadyResponse.FromString,
        )
        assert not ready(inference_pb2.ModelReadyRequest(name="small")).ready
        with pytest.raises(grpc.RpcError) as refused:
            ready(inference_pb2.ModelReadyRequest(name="x" * (2 << 20)))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_a_second_gateway_shares_the_load(board: Board) -> None:
    board.up()
    first = json.loads(board.run("gateway", "start", "--http", "127.0.0.1:0", "--json").stdout)
    second = json.loads(board.run("gateway", "start", "--http", "0", "--name", "http-2", "--json").stdout)
    assert first["url"] != second["url"]
    assert json.loads(board.run("status", "--json").stdout)["gateways"] == {
        "http": first["url"],
        "http-2": second["url"],
    }
    opened = board.run("gateway", "start", "--http", "0.0.0.0:0", "--name", "wide")
    assert "0.0.0.0:0 is open to other machines, without keys and without TLS" in opened.stderr
    assert board.run("stop", "http-2").returncode == 0
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{second['url']}/health")
