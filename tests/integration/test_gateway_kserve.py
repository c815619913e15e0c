"""KServe's v2 protocol over HTTP, as any client may speak it: JSON, and Triton's extensions of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from gateways import gateway, idle, push_out, start_engine

from callboard.runtime.node import Node
from callboard.schemas.serve import ChatMessage, Completion, Generate
from callboard.schemas.serve_stats import GetStats

pytestmark = pytest.mark.anyio

LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
async def http(node: Node, long_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    await start_engine(node, long_path)
    async with gateway(node, models={"small": "engine.scheduler"}, max_body_mib=1) as url:
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            yield client
    await idle(node)


def text(*texts: str) -> dict[str, Any]:
    return {"name": "text_input", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}


def number(name: str, datatype: str, value: object) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [1], "data": [value]}


async def said(node: Node, prompt: str, **options: Any) -> Completion:
    return await node.actor("engine").ask(Generate(prompt=prompt, **options))


def outputs(answer: httpx2.Response) -> dict[str, list[Any]]:
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


async def test_texts_are_answered_as_on_the_bus(http: httpx2.AsyncClient, node: Node) -> None:
    options = {"max_tokens": 7, "temperature": 0.9, "top_p": 0.95, "seed": 4}
    inputs = [
        text("hello", "all"),
        *(number(name, "FP32" if name[0] == "t" else "INT64", options[name]) for name in options),
    ]
    answer = await http.post("/v2/models/small/versions/1/infer", json={"id": "7", "inputs": inputs})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("small", "1", "7")
    known = [await said(node, prompt, **options) for prompt in ("hello", "all")]
    assert outputs(answer) == {
        "text_output": [one.text for one in known],
        "finish_reason": ["length", "length"],
        "prompt_tokens": [one.usage.prompt_tokens for one in known],
        "completion_tokens": [7, 7],
    }
    as_parameters = {"inputs": [text("hello", "all")], "parameters": options, "outputs": [{"name": "text_output"}]}
    again = await http.post("/v2/models/small/infer", json=as_parameters)
    assert outputs(again) == {"text_output": [one.text for one in known]}
    in_json = [text("hello", "all"), number("sampling_parameters", "BYTES", json.dumps(options))]
    again = await http.post("/v2/models/small/infer", json={"inputs": in_json})
    assert outputs(again)["text_output"] == [one.text for one in known]


async def test_a_chat_goes_through_the_template(http: httpx2.AsyncClient, node: Node) -> None:
    known = await node.actor("engine").ask(Generate(messages=(ChatMessage("user", "hello"),), max_tokens=6))
    answer = await http.post("/v2/models/small/generate", json={"text_input": "hello", "chat": True, "max_tokens": 6})
    assert answer.json()["text_output"] == known.text
    assert answer.json()["prompt_tokens"] == known.usage.prompt_tokens


@pytest.mark.parametrize("session", ["mine", ""])
async def test_a_follow_up_of_a_session_computes_only_what_is_new(
    http: httpx2.AsyncClient, node: Node, session: str
) -> None:
    path, told = "/v2/models/small/generate", {"max_tokens": 4, "session_id": session, "session_ttl_s": 50}
    prompt = "hello all " * 20
    first = (await http.post(path, json={"text_input": prompt, **told})).json()
    await push_out(node)
    before = await node.actor("engine").ask(GetStats())
    whole = {"text_input": f"{prompt}{first['text_output']} and now?", "parameters": told}
    second = (await http.post(path, json=whole)).json()
    after = await node.actor("engine").ask(GetStats())
    assert after.prompt_tokens - before.prompt_tokens == second["prompt_tokens"]
    cached = after.cached_tokens - before.cached_tokens
    assert cached > first["prompt_tokens"] - 4 if session else cached < 8
    assert after.sessions == bool(session)


async def test_tensors_may_lie_behind_the_json(http: httpx2.AsyncClient, node: Node, long_path: Path) -> None:
    prompt = b"hello"
    raw = len(prompt).to_bytes(4, "little") + prompt
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "text_input",
                    "datatype": "BYTES",
                    "shape": [1, 1],
                    "parameters": {"binary_data_size": len(raw)},
                },
                {"name": "max_tokens", "datatype": "INT32", "shape": [1], "parameters": {"binary_data_size": 4}},
            ],
            "outputs": [
                {"name": "text_output", "parameters": {"binary_data": True}},
                {"name": "completion_tokens", "parameters": {"binary_data": True}},
                {"name": "finish_reason"},
            ],
        }
    ).encode()
    body = header + raw + (5).to_bytes(4, "little")
    path = f"/v2/models/{long_path}/infer"  # a name that is a path itself
    for content, encoding in ((body, {}), (gzip.compress(body), {"Content-Encoding": "gzip"})):
        answer = await http.post(path, content=content, headers={LENGTH: str(len(header)), **encoding})
        assert answer.status_code == 200, answer.text
        size = int(answer.headers[LENGTH])
        told = {output["name"]: output for output in json.loads(answer.content[:size])["outputs"]}
        known = (await said(node, "hello", max_tokens=5)).text.encode()
        assert told["text_output"]["shape"] == [1, 1]
        assert answer.content[size:] == len(known).to_bytes(4, "little") + known + (5).to_bytes(4, "little")
        assert told["completion_tokens"]["parameters"] == {"binary_data_size": 4}
        assert told["finish_reason"]["data"] == ["length"]


async def test_a_stream_adds_up_to_the_whole_answer(http: httpx2.AsyncClient, node: Node) -> None:
    body = {"text_input": "hello", "id": "a", "parameters": {"max_tokens": 12, "temperature": 0.9, "seed": 3}}
    whole = (await http.post("/v2/models/small/generate", json=body)).json()
    events: list[dict[str, Any]] = []
    async with http.stream("POST", "/v2/models/small/generate_stream", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line:
                assert line.startswith("data: ")
                events.append(json.loads(line[6:]))
    assert len(events) > 2
    assert "".join(one["text_output"] for one in events) == whole["text_output"]
    assert events[-1] == whole | {"text_output": ""}
    assert all("finish_reason" not in one for one in events[:-1])
    once = await http.post("/v2/models/small/generate_stream", json=body | {"stream": False})
    assert json.loads(once.text.removeprefix("data: ")) == whole


async def test_the_server_and_its_models_say_what_they_are(http: httpx2.AsyncClient, long_path: Path) -> None:
    server = (await http.get("/v2")).json()
    assert server["name"] == "callboard"
    assert "binary_tensor_data" in server["extensions"]
    assert (await http.get("/v2/health/live")).json() == {"live": True}
    assert (await http.get("/v2/health/ready")).json() == {"ready": True}
    for path in ("/v2/models/small/ready", "/v2/models/small/versions/1/ready", f"/v2/models/{long_path}/ready"):
        assert (await http.get(path)).status_code == 200
    model = (await http.get("/v2/models/small")).json()
    assert (model["name"], model["versions"]) == ("small", ["1"])
    assert model["inputs"][0] == {"name": "text_input", "datatype": "BYTES", "shape": [-1]}
    config = (await http.get("/v2/models/small/config")).json()
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert [one["name"] for one in config["input"]] == [one["name"] for one in model["inputs"]]
    index = (await http.post("/v2/repository/index", json={})).json()
    assert {"name": "small", "version": "1", "state": "READY", "reason": ""} in index


async def test_no_model_is_not_ready(node: Node) -> None:
    async with gateway(node) as url, httpx2.AsyncClient(base_url=url) as http:
        assert (await http.get("/v2/health/live")).status_code == 200
        assert (await http.get("/v2/health/ready")).status_code == 503
        missing = await http.get("/v2/models/small/ready")
        assert (missing.status_code, "no engine runs" in missing.json()["error"]) == (404, True)


INFER = "small/infer"
WRONG: list[tuple[str, Any, int, str]] = [
    ("nobody/infer", {"inputs": [text("a")]}, 404, "there is no model 'nobody'; there are:"),
    ("small/versions/2/infer", {"inputs": [text("a")]}, 404, "there is no version '2' of 'small'; there is: 1"),
    (INFER, {}, 400, "missing required field `inputs`"),
    (INFER, {"inputs": [number("seed", "INT64", 1)]}, 400, "`text_input` is missing"),
    (INFER, {"inputs": [text("a"), text("b")]}, 400, "inputs.text_input: it is there more than once"),
    (INFER, {"inputs": [text("a") | {"shape": [2]}]}, 400, "expected 2 elements for the shape [2], got 1"),
    (INFER, {"inputs": [text("a") | {"shape": [-1]}]}, 400, "inputs.text_input.shape"),
    (INFER, {"inputs": [text("a") | {"datatype": "STR"}]}, 400, "expected one of BYTES, BOOL"),
    (INFER, {"inputs": [text("a") | {"data": [3]}]}, 400, "inputs[0].data: expected elements of BYTES, got 3"),
    (INFER, {"inputs": [text()]}, 400, "expected 1 to 1024 texts, got 0"),
    (INFER, {"inputs": [text("a"), number("seed", "FP32", 1)]}, 400, "inputs.seed.datatype: expected INT64"),
    (INFER, {"inputs": [text("a"), number("max_token", "INT32", 1)]}, 400, "inputs.max_token: this is not"),
    (INFER, {"inputs": [text("a")], "parameters": {"top_k": 1.5}}, 400, "parameters.top_k: expected an integer"),
    (INFER, {"inputs": [text("a")], "parameters": {"stream": True}}, 400, "stream: here an answer comes whole"),
    (INFER, {"inputs": [text("a")], "parameters": {"top_p": 7}}, 400, "top_p"),
    (INFER, {"inputs": [text("a")], "outputs": [{"name": "x"}]}, 400, "there is no 'x'; there are: text_output"),
    (INFER, {"inputs": [text("a", "b")], "parameters": {"session_id": "s"}}, 400, "session_id: one text goes on with"),
    (INFER, {"inputs": [text("a")], "parameters": {"session_id": 3}}, 400, "parameters.session_id: expected a string"),
    (INFER, {"inputs": [text("a")], "parameters": {"session_id": "x" * 300}}, 400, "session_id "),
    ("small/generate", {"max_tokens": 3}, 400, "text_input: expected a string, and it is missing"),
    ("small/generate", {"text_input": ["a"]}, 400, "text_input: expected a string"),
    ("small/generate_stream", {"text_input": "a", "seed": "x"}, 400, 'parameters.seed: expected an integer, got "x"'),
]  # fmt: skip


async def test_bad_requests_are_told_what_is_wrong(http: httpx2.AsyncClient) -> None:
    for path, body, status, expected in WRONG:
        answer = await http.post(f"/v2/models/{path}", json=body)
        assert answer.status_code == status, (path, body, answer.text)
        assert list(answer.json()) == ["error"]
        assert expected in answer.json()["error"], (path, body)


async def test_bodies_that_are_not_what_they_say(http: httpx2.AsyncClient) -> None:
    async def post(content: bytes, **headers: str) -> tuple[int, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await http.post("/v2/models/small/infer", content=content, headers=named)
        return answer.status_code, answer.json()["error"]

    good = json.dumps({"inputs": [text("a")]}).encode()
    sized = json.dumps({"inputs": [text("a") | {"parameters": {"binary_data_size": 99}}]}).encode()
    assert (await post(b"{"))[0] == 400
    assert f"expected 0 to {len(good)}" in (await post(good, Inference_Header_Content_Length="999"))[1]
    assert (await post(good, Inference_Header_Content_Length="x"))[0] == 400
    assert "belong to none" in (await post(good + b"123", Inference_Header_Content_Length=str(len(good))))[1]
    assert "the bytes that are left" in (await post(sized))[1]
    assert "no gzip" in (await post(good, Content_Encoding="gzip"))[1]
    assert "ends before it is whole" in (await post(gzip.compress(good)[:-9], Content_Encoding="gzip"))[1]
    assert "expected gzip or deflate" in (await post(good, Content_Encoding="br"))[1]
    assert (await post(gzip.compress(b" " * (2 << 20)), Content_Encoding="gzip"))[0] == 413
    nowhere = await http.get("/v2/nothing")
    assert (nowhere.status_code, list(nowhere.json())) == (404, ["error"])


async def test_a_client_that_goes_away_ends_its_request(http: httpx2.AsyncClient, node: Node) -> None:
    body = {"text_input": "hello", "max_tokens": 1000, "ignore_eos": True}
    async with http.stream("POST", "/v2/models/small/generate_stream", json=body) as answer:
        assert answer.status_code == 200
        assert "text_output" in await anext(answer.aiter_lines())
    stats = await idle(node)
    assert (stats.aborted, stats.finished) == (1, 0)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: http.post("/v2/models/small/generate", json=body))
        with anyio.fail_after(10):
            while not (await node.actor("engine").ask(GetStats())).running:
                await anyio.sleep(0.005)
        group.cancel_scope.cancel()
    stats = await idle(node)
    assert (stats.aborted, stats.finished) == (2, 0)
