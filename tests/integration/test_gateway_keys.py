"""Who may ask a gateway, how much, and what refusals look like to the clients that people use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import anyio
import httpx2
import msgspec
import openai
import pytest
from gateways import gateway, start_engine

from callboard.actors.gateway.app import make_app
from callboard.actors.gateway.config import GatewayConfig
from callboard.actors.gateway.engines import Engines
from callboard.actors.gateway.keys import Scope, new_key, revoke_key
from callboard.actors.gateway.site import Site
from callboard.runtime.client import Client
from callboard.runtime.node import Node

pytestmark = pytest.mark.anyio

SAY: Any = [{"role": "user", "content": "hello"}]
BODY: dict[str, Any] = {"prompt": "hello", "max_tokens": 4}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    new_key(path, "first")
    return path


@pytest.fixture
async def url(node: Node, long_path: Path, keys: Path) -> AsyncIterator[str]:
    await start_engine(node, long_path)
    async with gateway(node, keys_file=str(keys)) as url:
        yield url


def openai_client(url: str, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20)


async def test_openai_clients_need_a_key_and_learn_why_not(url: str, keys: Path, long_path: Path) -> None:
    async with openai_client(url, "sk-unknown") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.models.list()
        assert refused.value.code == "gateway.key"
        assert refused.value.type == "authentication_error"
        assert refused.value.response.headers["www-authenticate"] == "Bearer"
    async with openai_client(url, new_key(keys, "scores", [Scope.EMBEDDINGS])) as client:
        assert [model.id async for model in client.models.list()] == [str(long_path)]
        await client.embeddings.create(model=str(long_path), input="hello")
        with pytest.raises(openai.PermissionDeniedError, match="'scores' may not ask for /v1/chat/completions"):
            await client.chat.completions.create(model=str(long_path), messages=SAY, max_tokens=2)


async def test_anthropic_clients_show_their_key_in_their_own_way(url: str, keys: Path, long_path: Path) -> None:
    for known in (True, False):
        key = new_key(keys, "claude") if known else "wrong"
        async with anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as client:
            asked = client.messages.create(model=str(long_path), messages=SAY, max_tokens=3)
            if known:
                assert (await asked).usage.output_tokens == 3
                continue
            with pytest.raises(anthropic.AuthenticationError) as refused:
                await asked
            assert refused.value.body == {
                "type": "error",
                "error": {"type": "authentication_error", "message": "this key is not known here, or good no more"},
            }


async def test_kserve_refusals_have_kserves_shape(url: str) -> None:
    async with httpx2.AsyncClient() as http:
        answer = await http.get(f"{url}/v2/models/any")
        assert answer.status_code == 401
        assert list(answer.json()) == ["error"]
        assert "a key is needed here" in answer.json()["error"]


async def test_probes_need_no_key_and_metrics_their_own(url: str, keys: Path) -> None:
    async with httpx2.AsyncClient() as http:
        assert (await http.get(f"{url}/health")).status_code == 200
        assert (await http.get(f"{url}/ready")).status_code == 200
        assert (await http.get(f"{url}/metrics")).status_code == 401
        chat = {"authorization": f"Bearer {new_key(keys, 'chat')}"}
        assert (await http.get(f"{url}/metrics", headers=chat)).status_code == 403
        watch = {"authorization": f"bearer {new_key(keys, 'watch', [Scope.METRICS])}"}
        told = await http.get(f"{url}/metrics", headers=watch)
        assert told.status_code == 200
        assert 'callboard_key_refused_total{gateway="' in told.text


async def test_a_key_that_is_revoked_opens_nothing_from_then_on(url: str, keys: Path) -> None:
    headers = {"x-api-key": new_key(keys, "short")}
    async with httpx2.AsyncClient() as http:
        assert (await http.get(f"{url}/v1/models", headers=headers)).status_code == 200
        revoke_key(keys, "short")
        assert (await http.get(f"{url}/v1/models", headers=headers)).status_code == 401


async def test_requests_beyond_a_keys_rate_wait(url: str, keys: Path) -> None:
    headers = {"authorization": f"Bearer {new_key(keys, 'slow', requests_per_minute=2)}"}
    async with httpx2.AsyncClient() as http:
        first = await http.get(f"{url}/v1/models", headers=headers)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert (await http.get(f"{url}/v1/models", headers=headers)).status_code == 200
        refused = await http.get(f"{url}/v1/models", headers=headers)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.json()["error"]["type"] == "rate_limit_error"
        other = {"authorization": f"Bearer {new_key(keys, 'other')}"}
        assert (await http.get(f"{url}/v1/models", headers=other)).status_code == 200


@pytest.mark.parametrize("streams", [False, True])
async def test_tokens_are_counted_after_the_answer(url: str, keys: Path, streams: bool) -> None:
    headers = {"authorization": f"Bearer {new_key(keys, 'small', tokens_per_minute=5)}"}
    body = {**BODY, "max_tokens": 30, "ignore_eos": True, "stream": streams}
    async with httpx2.AsyncClient(timeout=20) as http:
        whole = await http.post(f"{url}/v1/completions", headers=headers, json=body)
        assert whole.status_code == 200
        refused = await http.post(f"{url}/v1/completions", headers=headers, json=body)
        assert refused.status_code == 429
        assert "5 tokens a minute" in refused.json()["error"]["message"]
        # More than 30 tokens were overdrawn by a bucket of 5, which gains one in 12 s.
        assert int(refused.headers["retry-after"]) >= (30 - 5) * 12


async def test_an_answer_that_is_given_up_costs_what_was_sent(url: str, keys: Path) -> None:
    headers = {"authorization": f"Bearer {new_key(keys, 'hasty', tokens_per_minute=3)}"}
    body = {**BODY, "max_tokens": 1000, "ignore_eos": True, "stream": True}
    async with httpx2.AsyncClient(timeout=20) as http:
        async with http.stream("POST", f"{url}/v1/completions", headers=headers, json=body) as answer:
            lines = 0
            async for line in answer.aiter_lines():
                lines += line.startswith("data: ")
                if lines == 5:
                    break
        with anyio.fail_after(10):
            while (await http.get(f"{url}/v1/models", headers=headers)).status_code != 429:
                await anyio.sleep(0.01)  # until the gateway has seen it go


async def test_the_engine_knows_clients_by_their_key(url: str, keys: Path, node: Node, long_path: Path) -> None:
    """Whatever they call themselves: `user` is theirs to make up."""
    heard: list[str] = []
    async with Client(node).tap("engine.scheduler") as taps:
        secret = new_key(keys, "alice")
        async with openai_client(url, secret) as client:
            await client.chat.completions.create(model=str(long_path), messages=SAY, max_tokens=2, user="bob")
            await client.completions.create(model=str(long_path), prompt="hello", max_tokens=2, user="bob")
            await client.embeddings.create(model=str(long_path), input="hello", user="bob")
        async with anthropic.AsyncAnthropic(base_url=url, api_key=secret, max_retries=0) as client:
            await client.messages.create(model=str(long_path), messages=SAY, max_tokens=2)
        with anyio.fail_after(10):
            async for _, tapped in taps:
                client_name = msgspec.msgpack.decode(tapped.message).get("client")
                heard += [] if client_name is None else [client_name]
                if len(heard) == 4:
                    break
    assert heard == ["alice"] * 4


async def test_every_route_has_a_door(node: Node, keys: Path) -> None:
    """A new route without one would be for `admin` alone, by no decision of anybody."""
    from callboard.actors.gateway.doors import _BELOW, _EXACT
    from callboard.actors.gateway.shapes import is_below

    site = Site(node, GatewayConfig(keys_file=str(keys)), Engines(node, {}))
    app: Any = make_app(site)
    routes = [route.path for route in app._app.routes]
    assert "/v1/chat/completions" in routes
    for path in routes:
        plain = path.split("{")[0].rstrip("/") or "/"
        assert plain in _EXACT or any(is_below(plain, start) for start in _BELOW), path
