"""Malformed bodies at every endpoint that takes one: each is refused in the shape of its API, by the field's path, and
never with a failure of the server's; and the engine still answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest
from gateways import gateway, idle, start_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callboard.actors.agent.runs import Runs, RunsConfig
from callboard.actors.questions.board import Board
from callboard.actors.train.jobs import Jobs, JobsConfig
from callboard.runtime.node import Node
from callboard.schemas.serve import Generate

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

TINY = {"max_tokens": 1, "temperature": 0.5}
FUNCTION = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
# For each endpoint a body that is right; every scalar in it has one type, or a few that are all scalars or lists.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": TINY
    | {
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
        ],
        "top_p": 0.5,
        "n": 1,
        "seed": 3,
        "stop": ["x"],
        "logprobs": True,
        "top_logprobs": 1,
        "stream": False,
        "stream_options": {"include_usage": True},
        "presence_penalty": 0.5,
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "response_format": {"type": "text"},
        "session_id": "s",
        "priority": 1,
    },
    "/v1/completions": TINY | {"prompt": ["a", "b"], "echo": False, "logprobs": 1, "best_of": 1, "user": "me"},
    "/v1/embeddings": {"input": "hello", "encoding_format": "float", "user": "me"},
    "/v1/responses": {
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
        "instructions": "be kind",
        "max_output_tokens": 1,
        "temperature": 0.5,
        "store": False,
        "stream": False,
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low"},
        "truncation": "disabled",
    },
    "/v1/responses/input_tokens": {"input": "hello", "instructions": "be kind"},
    "/v1/messages": TINY
    | {
        "model": "m",
        "system": [{"type": "text", "text": "be kind"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "tools": [{"name": "weather", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "none"},
        "stop_sequences": ["x"],
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "session_id": "s",
        "session_ttl_s": 1.5,
        "stream": False,
    },
    "/v1/messages/count_tokens": {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
    "/v1/fine_tuning/jobs": {
        "model": "m",
        "training_file": "file-1",
        "suffix": "mine",
        "seed": 1,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
    },
    "/v1/sessions/s": {"ttl_s": 1.5},
    "/tokenize": {"prompt": "hello", "add_special_tokens": True},
    "/detokenize": {"tokens": [1, 2]},
    "/v2/models/m/infer": {
        "id": "1",
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hello"]}],
        "parameters": {"max_tokens": 1, "session_id": "s", "chat": True},
        "outputs": [{"name": "text_output"}, {"name": "reasoning_content"}],
    },
    "/v2/models/m/generate": {"text_input": "hello", "parameters": {"max_tokens": 1}},
    "/v2/models/m/generate_stream": {"text_input": "hello", "parameters": {"max_tokens": 1}},
    "/v2/repository/index": {"ready": True},
    "/web/approvals/a": {"verdict": "approve", "text": "t", "by": "me", "scope": "once", "stop": False},
    "/web/questions/q": {"outcome": "accepted", "note": "n", "by": "me"},
}
# What no scalar field takes, and no list either.
WRONG: tuple[Any, ...] = ({"x": []}, {"": None})
Place = tuple[str | int, ...]


def path_of(place: Place) -> str:
    path = ""
    for step in place:
        path += f"[{step}]" if isinstance(step, int) else f"{'.' if path else ''}{step}"
    return path


def scalars(value: Any, place: Place = ()) -> Iterator[Place]:
    if isinstance(value, dict):
        for name, one in value.items():
            if name not in ("parameters", "input_schema", "schema"):  # any JSON may be in these
                yield from scalars(one, (*place, name))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from scalars(one, (*place, index))
    else:
        yield place


def changed(body: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    copy = body.copy()
    copy[place[0]] = changed(body[place[0]], place[1:], value)
    return copy


PLACES = [(path, place) for path, body in BODIES.items() for place in scalars(body)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def message_of(path: str, answer: httpx2.Response) -> tuple[str, str | None]:
    """The message of an error, and the path of its field where the API has a place for it; in no other shape."""
    said = answer.json()
    if path.startswith("/v2/"):
        assert set(said) == {"error"}
        return said["error"], None
    if path.startswith("/v1/messages"):
        assert set(said) == {"type", "error"}
        assert said["type"] == "error"
        assert set(said["error"]) == {"type", "message"}
        return said["error"]["message"], None
    assert set(said) == {"error"}
    assert set(said["error"]) == {"message", "type", "param", "code"}
    return said["error"]["message"], said["error"]["param"]


@dataclass
class Gate:
    """A gateway, asked from a thread: Hypothesis knows no coroutines."""

    http: httpx2.Client
    model: str

    def post(self, path: str, content: bytes) -> httpx2.Response:
        headers = {"content-type": "application/json"}
        answer = self.http.post(path.replace("/m/", f"/{self.model}/"), content=content, headers=headers)
        assert answer.status_code < 500, (path, content, answer.text)
        if answer.status_code >= 400:
            message, _ = message_of(path, answer)
            assert message
        return answer

    def post_json(self, path: str, body: Any) -> httpx2.Response:
        if isinstance(body, dict) and body.get("model") == "m":
            body = body | {"model": self.model}
        return self.post(path, json.dumps(body).encode())


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
async def gate(node: Node, long_path: Path, tmp_path: Path) -> AsyncIterator[Gate]:
    await node.spawn(Jobs, JobsConfig(str(tmp_path / "jobs"), "nothing.trains"), name="train")
    await node.spawn(Board, name="questions")
    await node.spawn(Runs, RunsConfig(), name="agents")
    await start_engine(node, long_path, default_max_tokens=2)
    async with gateway(node, models={"tiny": "engine"}) as url:
        with httpx2.Client(base_url=url, timeout=30) as http:
            yield Gate(http, "tiny")
            # The engine still answers, and nothing is left of what was asked.
            assert (await node.actor("engine").ask(Generate(prompt="hello", max_tokens=2))).usage.completion_tokens == 2
    stats = await idle(node)
    assert stats.failed == 0


async def in_thread(test: Callable[[], None]) -> None:
    await anyio.to_thread.run_sync(test)


def few(count: int) -> settings:
    return settings(max_examples=count, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


async def test_the_bodies_are_right_before_they_are_changed(gate: Gate) -> None:
    def test() -> None:
        for path, body in BODIES.items():
            answer = gate.post_json(path, body)
            # There is no such file, approval, question; all else is answered, the session of the first one too.
            expected = 200
            if path.startswith("/web/"):
                expected = 404
            elif path.startswith("/v1/fine_tuning"):
                expected = 400
                assert answer.json()["error"]["param"] == "training_file"
            assert answer.status_code == expected, (path, answer.text)

    await in_thread(test)


async def test_every_field_of_a_wrong_type_is_named_by_its_path(gate: Gate) -> None:
    def test() -> None:
        for number, (path, place) in enumerate(PLACES):
            answer = gate.post_json(path, changed(BODIES[path], place, WRONG[number % len(WRONG)]))
            assert answer.status_code == 400, (path, place, answer.text)
            message, param = message_of(path, answer)
            where = path_of(place if place[-2:-1] != ("data",) else place[:-1])  # of data, a tensor as a whole
            assert where in message, (path, place, message)
            if not path.startswith(("/v2/", "/v1/messages")):
                assert param == where, (path, place, answer.text)

    await in_thread(test)


async def test_any_json_in_any_place_is_answered_in_the_shape_of_its_api(gate: Gate) -> None:
    @few(250)
    @given(st.sampled_from(PLACES), JSON)
    def test(at: tuple[str, Place], value: Any) -> None:
        path, place = at
        gate.post_json(path, changed(BODIES[path], place, value))

    await in_thread(test)


async def test_bytes_that_are_no_body_are_refused(gate: Gate) -> None:
    @few(150)
    @given(st.sampled_from(list(BODIES)), st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
    def test(path: str, content: bytes) -> None:
        answer = gate.post(path, content)
        if not content and path.startswith("/v2/repository"):
            assert answer.status_code == 200
        elif content[:1] != b"{":
            assert answer.status_code == 400, (path, content, answer.text)

    await in_thread(test)


@pytest.mark.parametrize("wanted", ["chat", "responses", "messages"])
async def test_a_schema_that_is_none_is_refused_and_ends_no_other_request(gate: Gate, wanted: str) -> None:
    keys = st.sampled_from(
        (
            "type",
            "properties",
            "items",
            "enum",
            "pattern",
            "minItems",
            "maxLength",
            "$ref",
            "anyOf",
            "required",
            "const",
        )
    )
    odd = st.sampled_from(("nonsense", "object", "array", "(", "[", "#/nowhere", "#", "^a{9999999}$"))
    leaves = st.none() | st.booleans() | st.integers(-3, 1 << 40) | odd
    schemas = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3), max_leaves=5
    ).filter(lambda value: isinstance(value, dict))

    @few(60)
    @given(schemas)
    def test(schema: dict[str, Any]) -> None:
        if wanted == "chat":
            format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            body = {"messages": [{"role": "user", "content": "a"}], "response_format": format, "max_tokens": 1}
            gate.post_json("/v1/chat/completions", body)
        elif wanted == "messages":
            config = {"format": {"type": "json_schema", "schema": schema}}
            body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
            gate.post_json("/v1/messages", body | {"output_config": config})
        else:
            text = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
            gate.post_json("/v1/responses", {"input": "a", "text": text, "max_output_tokens": 1, "store": False})

    await in_thread(test)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("top_p", 0),
        ("n", 0),
        ("max_tokens", -5),
        ("presence_penalty", 9),
        ("min_p", 2),
        ("seed", 1 << 70),
        ("priority", 1 << 20),
        ("stop", [""]),
        ("session_id", "x" * 300),
        ("top_logprobs", 100),
        ("logit_bias", {"x": 1}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}),
    ],
)
async def test_a_value_that_no_engine_takes_is_named_too(gate: Gate, field: str, value: Any) -> None:
    def test() -> None:
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "logprobs": True}
        answer = gate.post_json("/v1/chat/completions", body | {field: value})
        assert answer.status_code == 400, answer.text
        assert (answer.json()["error"]["param"] or "").startswith(field), answer.text

    await in_thread(test)
