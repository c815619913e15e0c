"""Models whose chat template begins the thought: what they write up to `</think>` is told as thought by every API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import grpc.aio
import httpx2
import jsonschema
import pytest
from gateways import gateway, idle, start_engine
from test_gateway_kserve_grpc import Client as GrpcClient
from test_gateway_kserve_grpc import asking, grpc_gateway, outputs
from unit_helpers import unit_helper

from callboard.actors.agent.scripted import Scripted, ScriptedConfig
from callboard.actors.gateway.web_gradio import Talk
from callboard.actors.serve.intake import Intake
from callboard.runtime.actor import handler
from callboard.runtime.client import Client
from callboard.runtime.node import Node
from callboard.schemas.scripted import ScriptedAnswer
from callboard.schemas.serve import (
    ChatMessage,
    DescribeModel,
    Detokenize,
    Generate,
    ModelDescription,
    TokenIds,
    Tokenize,
    TokenText,
)

pytestmark = pytest.mark.anyio

SAY: Any = [{"role": "user", "content": "hello"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Delft", "Oslo"]}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


@pytest.fixture(scope="module")
def thinking_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model whose prompts end as those of Qwen3's thinking models do."""
    models = unit_helper("models/conftest.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "TEMPLATE", models.TEMPLATE.replace("assistant\n", "assistant\n<think>\n"))
        return models.write_tiny_model(tmp_path_factory.mktemp("thinks") / "tiny.gguf", context_length=2048)


@pytest.fixture
async def http(node: Node, thinking_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    await start_engine(node, thinking_path)
    async with gateway(node) as url, httpx2.AsyncClient(base_url=url, timeout=30) as client:
        yield client
    await idle(node)


def chunks_of(streamed: httpx2.Response) -> list[Any]:
    data = [line.removeprefix("data: ") for line in streamed.text.split("\n") if line.startswith("data: {")]
    return [json.loads(one) for one in data]


async def test_an_answer_that_ends_in_its_thought_is_nothing_but_thought(http: httpx2.AsyncClient, node: Node) -> None:
    said = await node.actor("engine").ask(Generate(messages=(ChatMessage("user", "hello"),), max_tokens=12))
    text = said.text.lstrip("\n").rstrip("\n")
    assert text
    chat = {"messages": SAY, "max_tokens": 12, "temperature": 0}
    message = (await http.post("/v1/chat/completions", json=chat)).json()["choices"][0]["message"]
    assert (message["reasoning_content"].rstrip("\n"), message["content"]) == (text, "")
    chunks = chunks_of(await http.post("/v1/chat/completions", json=chat | {"stream": True}))
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas).rstrip("\n") == text
    assert not any(delta.get("content") for delta in deltas)

    asked = {"model": "", **chat}
    (block,) = (await http.post("/v1/messages", json=asked)).json()["content"][:1]
    assert (block["type"], block["thinking"].rstrip("\n")) == ("thinking", text)
    events = chunks_of(await http.post("/v1/messages", json=asked | {"stream": True}))
    thought = "".join(event["delta"].get("thinking", "") for event in events if event["type"] == "content_block_delta")
    assert thought.rstrip("\n") == text

    body = {"input": "hello", "max_output_tokens": 12, "temperature": 0, "store": False}
    item = (await http.post("/v1/responses", json=body)).json()["output"][0]
    assert (item["type"], item["content"][0]["text"].rstrip("\n")) == ("reasoning", text)

    (model,) = (await http.post("/v2/repository/index")).json()
    path, asked = f"/v2/models/{model['name']}", {"text_input": "hello", "chat": True, "max_tokens": 12}
    told = (await http.post(f"{path}/generate", json=asked)).json()
    assert (told["reasoning_content"].rstrip("\n"), told["text_output"]) == (text, "")
    *grown, last = chunks_of(await http.post(f"{path}/generate_stream", json=asked))
    assert "".join(one["reasoning_content"] for one in grown).rstrip("\n") == text
    assert {one["text_output"] for one in (*grown, last)} == {""}
    assert (last["reasoning_content"], last["completion_tokens"]) == ("", 12)
    plain = (await http.post(f"{path}/generate", json={**asked, "chat": False})).json()
    assert plain["text_output"]
    assert "reasoning_content" not in plain  # a text that only goes on has no thoughts


async def test_what_must_look_like_something_is_no_thought(http: httpx2.AsyncClient) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    body: dict[str, Any] = {"messages": SAY, "max_tokens": 400, "seed": 3}
    chat = await http.post("/v1/chat/completions", json=body | {"response_format": format})
    message = chat.json()["choices"][0]["message"]
    assert "reasoning_content" not in message
    jsonschema.validate(json.loads(message["content"]), CITY)
    called = await http.post("/v1/chat/completions", json=body | {"tools": [TOOL], "tool_choice": "required"})
    message = called.json()["choices"][0]["message"]
    assert "reasoning_content" not in message
    jsonschema.validate(json.loads(message["tool_calls"][0]["function"]["arguments"]), CITY)


async def test_texts_that_go_on_have_no_thoughts(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/completions", json={"prompt": "hello", "max_tokens": 8})
    assert answer.json()["choices"][0]["text"]


class ThinksFirst(Scripted):
    """A script behind a template as DeepSeek's R1 has it: no thought is begun where a tool has answered. A character
    is a token."""

    tokenized = 0

    @handler(concurrent=True)
    async def describe(self, message: DescribeModel) -> ModelDescription:
        return ModelDescription(
            model="scripted", dtype="float32", context_length=4096, default_max_tokens=512, vocab_size=256,
            has_chat_template=True, tool_format="hermes", eos_id=None, adapters=(), started=0.0,
        )  # fmt: skip

    @handler
    async def tokenize(self, message: Tokenize) -> TokenIds:
        type(self).tokenized += 1
        text = "".join(f"<{turn.role}>{turn.content}" for turn in message.messages) + "<assistant>"
        if message.messages[-1].role != "tool" and message.messages[0].content != "Do not think.":
            text += "<think>\n"
        return TokenIds(tuple(map(ord, text)))

    @handler
    async def detokenize(self, message: Detokenize) -> TokenText:
        text = "".join(map(chr, message.token_ids))
        return TokenText(text, tuple(one.encode() for one in text))


async def test_a_thought_that_the_prompt_began_ends_where_the_model_ends_it(node: Node) -> None:
    answers = (
        ScriptedAnswer(text="It is a greeting.\n</think>\n\nGood day.", times=2),
        ScriptedAnswer(text="It rains.", times=1),
        ScriptedAnswer(text="At once.", times=1),
    )
    await node.spawn(ThinksFirst, ScriptedConfig(answers=answers, piece_characters=3), name="model")
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    after_tool = [
        *SAY,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    async with gateway(node, models={"scripted": "model"}) as url:
        async with httpx2.AsyncClient(base_url=url, timeout=30) as http:

            async def message(messages: Any) -> tuple[str, str]:
                said = await http.post("/v1/chat/completions", json={"model": "scripted", "messages": messages})
                found = said.json()["choices"][0]["message"]
                return found.get("reasoning_content", ""), found["content"]

            assert await message(SAY) == ("It is a greeting.", "Good day.")
            body = {"model": "scripted", "messages": SAY, "max_tokens": 99, "stream": True}
            deltas = [one["delta"] for one in chunks_of(await http.post("/v1/messages", json=body)) if "delta" in one]
            assert "".join(one.get("thinking", "") for one in deltas) == "It is a greeting."
            assert "".join(one.get("text", "") for one in deltas) == "Good day."
            assert await message(after_tool) == ("", "It rains.")
            assert await message([{"role": "system", "content": "Do not think."}, *SAY]) == ("", "At once.")
    assert ThinksFirst.tokenized == 1 + 4  # what the template does at all, and in each conversation


async def test_tensors_tell_thoughts_apart(node: Node) -> None:
    answer = ScriptedAnswer(text="It is a greeting.\n</think>\n\nGood day.", times=4)
    await node.spawn(ThinksFirst, ScriptedConfig(answers=(answer,), piece_characters=3), name="model")
    chat: dict[str, Any] = {"text_input": "hello", "chat": True}
    text = {"name": "text_input", "datatype": "BYTES", "shape": [2], "data": ["hello", "hello"]}
    models = {"small": "model"}
    async with gateway(node, models=models) as url, grpc_gateway(node, models=models) as target:
        async with httpx2.AsyncClient(base_url=f"{url}/v2/models/small", timeout=30) as http:
            told = await http.post("/infer", json={"inputs": [text], "parameters": {"chat": True}})
            values = {output["name"]: output["data"] for output in told.json()["outputs"]}
            assert (values["text_output"], values["reasoning_content"]) == (
                ["Good day."] * 2,
                ["It is a greeting."] * 2,
            )
            events = chunks_of(await http.post("/generate_stream", json=chat))
            assert "".join(event["reasoning_content"] for event in events) == "It is a greeting."
            assert "".join(event["text_output"] for event in events) == "Good day."
        async with grpc.aio.insecure_channel(target) as channel:
            stream = GrpcClient(channel).method("ModelStreamInfer")()
            request = asking("hello", chat=True, stream=True)
            request.outputs.add(name="text_output")  # whoever names no thoughts gets none
            await stream.write(request)
            await stream.done_writing()
            pieces = [outputs(response.infer_response) async for response in stream]
    assert b"".join(piece["text_output"][0] for piece in pieces) == b"Good day."
    assert all(piece.keys() == {"text_output"} for piece in pieces)
    assert all(piece["text_output"][0] for piece in pieces[:-1])  # a thought makes no empty pieces


async def test_gradios_page_shows_no_thought_that_the_prompt_began(node: Node) -> None:
    answer = ScriptedAnswer(text="It is a greeting.\n</think>\n\nGood day.")
    await node.spawn(ThinksFirst, ScriptedConfig(answers=(answer,), piece_characters=3), name="model")
    talk = Talk(Client(node), {"scripted": ("model", "")}, asyncio.get_running_loop())
    shown = await anyio.to_thread.run_sync(lambda: list(talk.turn("hello", [], "scripted", 0.0, 99)))
    assert shown[-1] == "Good day."
    assert all("Good day.".startswith(one) for one in shown)


async def test_a_model_that_begins_its_thoughts_itself_is_asked_once(
    node: Node, long_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized: list[Tokenize] = []
    tokenize = Intake.tokenize

    def noted(intake: Intake, request: Tokenize) -> Any:
        tokenized.append(request)
        return tokenize(intake, request)

    monkeypatch.setattr(Intake, "tokenize", noted)
    await start_engine(node, long_path)
    async with gateway(node) as url, httpx2.AsyncClient(base_url=url, timeout=30) as http:
        for _ in range(3):
            answer = await http.post("/v1/chat/completions", json={"messages": SAY, "max_tokens": 2})
            assert "reasoning_content" not in answer.json()["choices"][0]["message"]
    assert len(tokenized) == 1
    await idle(node)
