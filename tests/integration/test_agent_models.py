"""Models and memory of agents in processes of their own: over the bus, through kills, with a key that stays put."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import anyio
import nats
import pytest
from board import Board
from nats.aio.msg import Msg
from own_server import OwnServer
from unit_helpers import unit_helper
from workers import own_workers

import callboard
from callboard.actors.agent.memory.actor import MemoryConfig
from callboard.actors.agent.memory.notes import Notes
from callboard.actors.agent.script import UnexpectedCall, UnusedAnswers
from callboard.actors.agent.scripted import ScriptedConfig
from callboard.actors.agent.upstream.config import UpstreamConfig
from callboard.actors.agent.upstream.errors import UpstreamAuth
from callboard.actors.serve.engine import EngineConfig
from callboard.runtime.bus import BusOptions
from callboard.runtime.cli import main
from callboard.runtime.errors import ActorStopped, NoSuchActor
from callboard.runtime.node import Node
from callboard.runtime.placement import Process
from callboard.runtime.refs import Ref
from callboard.runtime.supervision import Restart
from callboard.schemas.agent import Recall, Remember, Remembered
from callboard.schemas.scripted import FinishScript, Match, ScriptedAnswer
from callboard.schemas.serve import ChatMessage, Generate, Token

pytestmark = pytest.mark.anyio

KEY = "sk-very-secret-0123456789"
HELLO = Generate(messages=(ChatMessage("user", "hello"),))


@pytest.fixture(scope="module")
def http() -> ModuleType:
    """The tests' own HTTP endpoint."""
    return unit_helper("agent/endpoint.py")


async def test_a_scripted_model_in_its_own_process_answers_over_the_bus(node: Node) -> None:
    answers = (ScriptedAnswer(pieces=("to ", "be"), match=Match.EXACT, pattern="hello"), ScriptedAnswer(text="left"))
    model = await node.spawn("agent.scripted", ScriptedConfig(answers=answers), name="scripted", where=Process())
    with pytest.raises(UnexpectedCall):
        await model.ask(Generate(messages=(ChatMessage("user", "something else"),)))
    async with model.stream(HELLO) as tokens:
        assert [token.text async for token in tokens if isinstance(token, Token)] == ["to ", "be"]
    assert tokens.result.text == "to be"
    with pytest.raises(UnexpectedCall, match="1 calls"):
        await model.ask(FinishScript())
    await node.stop("scripted")
    model = await node.spawn("agent.scripted", ScriptedConfig(answers=answers), name="scripted", where=Process())
    with pytest.raises(UnusedAnswers):
        await model.ask(FinishScript())


async def again(ref: Ref, request: Remember) -> Remembered:
    """As soon as the actor is back."""
    while True:
        try:
            return await ref.ask(request)
        except (ActorStopped, NoSuchActor):
            await anyio.sleep(0.02)


async def test_what_memory_acknowledged_outlives_a_kill_of_its_process(node: Node, tmp_path: Path) -> None:
    config = MemoryConfig(path=str(tmp_path / "memory.db"))
    memory = await node.spawn("agent.memory", config, name="memory", where=Process(), restart=Restart.PERMANENT)
    kept = await memory.ask(Remember("the door code is 4711", "home", "k"))
    (process,) = own_workers()
    process.kill()
    with anyio.fail_after(30):
        known = await again(memory, Remember("the door code is 4711", "home", "k"))
    assert (known.id, known.known) == (kept.id, True)
    (entry,) = (await memory.ask(Recall("code", "home"))).entries
    assert entry.id == kept.id


async def test_a_key_is_in_no_message_and_in_no_log(
    server: OwnServer, http: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    seen: list[bytes] = []

    async def see(message: Msg) -> None:
        seen.append(message.data)

    tap = await nats.connect(server.url)
    with http.serving() as web:
        endpoint = web.fresh()
        endpoint.plays = [
            http.Play(401, body={"error": {"message": f"Incorrect API key provided: {KEY}"}}),
            http.Play(500, body={"error": {"message": f"oops {KEY}"}}),
            http.openai_text("Hel", "lo"),
        ]
        config = UpstreamConfig(model="m", base_url=endpoint.url, key_env="THE_KEY", backoff_s=0.01)
        logs = tmp_path / "logs"
        async with Node("near", bus=BusOptions(server.url), logs=logs) as near, Node(bus=BusOptions(server.url)) as far:
            await near.spawn("agent.upstream", config, name="gpt", where=Process())
            # From here on: who listens to everything seems to be everybody, and names would count as taken.
            await tap.subscribe(">", cb=see)
            await tap.flush()
            model = far.actor("gpt")
            with pytest.raises(UpstreamAuth, match=r"\[key\]"):
                await model.ask(HELLO)
            assert (await model.ask(HELLO)).text == "Hello"
            await tap.flush()
        assert [came.headers["authorization"] for came in endpoint.came] == [f"Bearer {KEY}"] * 3
    await tap.close()
    assert any(b"gpt" in data or b"Hello" in data for data in seen)
    assert not [data for data in seen if KEY.encode() in data]
    written = "".join(path.read_text() for path in logs.rglob("*") if path.is_file())
    assert "asking again" in written
    assert KEY not in written


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board.at(tmp_path / "board")
    board.up()
    yield board
    board.close()


def test_an_upstream_is_started_from_the_command_line(
    board: Board, http: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in board.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "key").write_text(KEY)
    with http.serving() as web:
        endpoint = web.fresh()
        endpoint.plays = [http.openai_text("Hel", "lo")]
        settings = {"model": "gpt-5", "base_url": endpoint.url, "key_file": str(tmp_path / "key")}
        spawn = ["spawn", "agent.upstream", "--config", json.dumps(settings), "--name", "gpt"]
        assert main(spawn) == 0
        with callboard.connect_sync() as bus:
            assert bus.actor("gpt").ask(HELLO).text == "Hello"
        assert endpoint.came[0].body["model"] == "gpt-5"
    assert main([*spawn[:3], '{"model": "m", "key_env": "NOT_SET"}', "--name", "other"]) == 2


@pytest.mark.slow
async def test_notes_are_embedded_by_a_real_engine(node: Node, tiny_path: Path, tmp_path: Path) -> None:
    config = EngineConfig(model=str(tiny_path), num_blocks=64, max_batch_tokens=64, threads=1, block_size=4)
    await node.spawn("serve.engine", config, name="engine", where=Process(ready_timeout=50))
    path = tmp_path / "memory.db"
    memory = await node.spawn("agent.memory", MemoryConfig(path=str(path), embedder="engine"), name="memory")
    texts = ["the first note", "another one", "and the last"]
    for text in texts:
        await memory.ask(Remember(text))
    notes = Notes(path)
    with anyio.fail_after(40):
        while len(vectors := notes.vectors("", "")) < len(texts):
            await anyio.sleep(0.02)
    notes.close()
    assert len({vector.vector for vector in vectors}) == len(texts)
    # A text is nearest to itself, by its words and by its meaning, whatever the model.
    for text in texts:
        assert (await memory.ask(Recall(text, limit=1))).entries[0].text == text
