"""Programs that know nothing of this project use a gateway as they would use any other: lm-eval, LangChain, curl."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
import torch
from foreign import PEERS, output, python_of
from gateways import gateway, idle, start_engine
from unit_helpers import unit_helper

from callboard.runtime.node import Node
from callboard.schemas.serve import ChatMessage, Embed, Generate

pytestmark = [pytest.mark.anyio, pytest.mark.foreign, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model as transformers saves it, whose preferences are far apart."""
    return unit_helper("train/tiny_models.py").write_model(
        tmp_path_factory.mktemp("model") / "tiny", initializer_range=0.3, num_hidden_layers=3
    )


@pytest.fixture
async def url(node: Node, folder: Path) -> AsyncIterator[str]:
    await start_engine(node, folder, num_blocks=1000, block_size=16, dtype="float32", max_batch_tokens=512)
    async with gateway(node) as url:
        yield url
    await idle(node)


async def test_lm_eval_finds_what_its_own_model_finds(url: str, folder: Path, tmp_path: Path) -> None:
    python = await anyio.to_thread.run_sync(python_of, "lm-eval")
    packages = str(Path(torch.__file__).parents[1])
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    (tmp_path / "tasks").mkdir()
    said = await output(
        python, PEERS / "use_lm_eval.py", url, folder, tmp_path / "tasks", packages, timeout=600, env=offline
    )
    found = json.loads(said.splitlines()[-1])
    expected = found["hf"]
    chosen = expected["local_choice"]
    assert 0 < chosen["figures"]["acc"] < 1  # right and wrong answers both
    for way in ("tokens", "batches", "texts"):
        assert found[way]["local_choice"]["figures"] == chosen["figures"], way
        for ours, theirs in zip(found[way]["local_choice"]["answers"], chosen["answers"], strict=True):
            assert [answer[0] for answer in ours] == pytest.approx([answer[0] for answer in theirs], abs=2e-3)
            assert [answer[1] for answer in ours] == [answer[1] for answer in theirs]
        assert found[way]["local_write"] == expected["local_write"], way
    assert len({answer[0] for answer in expected["local_write"]["answers"]}) > 1
    assert found["chat"] == found["hf chat"]
    assert found["chat"]["local_write"]["answers"] != expected["local_write"]["answers"]


async def test_langchain_chats_calls_tools_and_embeds(url: str, node: Node, folder: Path) -> None:
    python = await anyio.to_thread.run_sync(python_of, "langchain-openai")
    said = await output(python, PEERS / "use_langchain-openai.py", url, folder, timeout=200)
    found = json.loads(said.splitlines()[-1])
    engine = node.actor("engine")
    turns = (ChatMessage("system", "Be brief."), ChatMessage("user", "hello"))
    whole = await engine.ask(Generate(messages=turns, max_tokens=12, temperature=0.0, seed=1))
    assert found["whole"] == found["streamed"] == found["batch"][0] == whole.text
    assert found["reason"] == whole.finish_reason.value
    for usage in (found["usage"], found["streamed_usage"]):
        assert usage["input_tokens"] == whole.usage.prompt_tokens
        assert usage["output_tokens"] == whole.usage.completion_tokens
    assert found["pieces"] > 1
    assert found["call"]["name"] == "weather"
    assert found["call"]["args"]["city"] in ("Delft", "Oslo")
    before, after = found["after_tokens"]
    assert after > before > 0
    assert found["town"]["name"] in ("Delft", "Oslo")
    text = await engine.ask(Generate(prompt="hello", max_tokens=8, temperature=0.0))
    assert found["text"] == text.text
    vectors = (await engine.ask(Embed(texts=("hello", "all")))).vectors
    for one, other in zip(found["vectors"], vectors, strict=True):
        assert one == pytest.approx(list(other), abs=1e-6)
    assert found["refused"].startswith("OpenAIModelNotFoundError: Error code: 404")
    assert str(folder) in found["refused"]


async def test_curl_asks_and_follows_a_stream(url: str, node: Node, folder: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no `curl`")
    body: dict[str, Any] = {
        "model": str(folder),
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 10,
        "temperature": 0,
    }
    plain = (curl, "--silent", "--show-error", "--fail-with-body", "--max-time", "30")

    def asked(path: str, **changes: Any) -> tuple[str, ...]:
        data = json.dumps({**body, **changes})
        return (*plain, "--no-buffer", "-H", "content-type: application/json", "-d", data, f"{url}{path}")

    models = json.loads(await output(*plain, f"{url}/v1/models", timeout=40))
    assert [model["id"] for model in models["data"]] == [str(folder)]
    whole = json.loads(await output(*asked("/v1/chat/completions"), timeout=40))["choices"][0]["message"]["content"]
    request = Generate(messages=(ChatMessage("user", "hello"),), max_tokens=10, temperature=0.0)
    assert whole == (await node.actor("engine").ask(request)).text

    events = (await output(*asked("/v1/chat/completions", stream=True), timeout=40)).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == whole

    message = json.loads(await output(*asked("/v1/messages"), timeout=40))
    assert message["content"] == [{"type": "text", "text": whole}]
    wrong = json.loads(
        await output("sh", "-c", '"$@" || [ $? -eq 22 ]', "sh", *asked("/v1/chat/completions", messages=3), timeout=40)
    )
    assert wrong["error"]["param"] == "messages"
