"""OpenAI's own client, unmodified, uploads files, has models fine-tuned, and talks with what comes of it."""

from __future__ import annotations

import io
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import msgspec
import openai
import pytest
from board import Board
from gateways import gateway, start_engine
from own_server import OwnServer
from unit_helpers import unit_helper

import callboard
from callboard.actors.gateway.config import FineTuningSettings, GatewayConfig
from callboard.actors.train.jobs import Jobs, JobsConfig
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from callboard.schemas.gateway import AskGateway
from callboard.schemas.train import BatchSettings, ComputeSettings, LoraSettings, OptimizerSettings

pytestmark = pytest.mark.anyio

SETTINGS = FineTuningSettings(
    lora=LoraSettings(rank=4),
    batch=BatchSettings(samples=8, max_tokens=128, micro_tokens=256),
    optimizer=OptimizerSettings(lr=5e-3, warmup=2),
    compute=ComputeSettings(precision="float32", device="cpu", threads=1),
)
WORDS = ["red", "blue", "old", "new", "tree", "stone", "river", "sings", "falls", "sleeps"]


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=50)


@pytest.fixture
async def client(node: Node) -> AsyncIterator[openai.AsyncOpenAI]:
    async with gateway(node, max_file_mib=1, files_max_mib=2) as url, client_of(url) as client:
        yield client


def chats(number: int = 16, **more: Any) -> bytes:
    chance = random.Random(3)
    lines: list[dict[str, Any]] = []
    for _ in range(number):
        asked, answered = (" ".join(chance.choices(WORDS, k=chance.randint(2, 8))) for _ in range(2))
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        lines.append({"messages": turns, **more})
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def pairs(number: int = 8) -> bytes:
    def line(index: int) -> dict[str, Any]:
        return {
            "input": {"messages": [{"role": "user", "content": f"{WORDS[index % 10]}?"}]},
            "preferred_output": [{"role": "assistant", "content": "the river sings"}],
            "non_preferred_output": [{"role": "assistant", "content": "the stone sleeps"}],
        }

    return b"".join(json.dumps(line(index)).encode() + b"\n" for index in range(number))


async def test_a_file_is_kept_once_listed_and_deleted(client: openai.AsyncOpenAI, tmp_path: Path) -> None:
    content = chats()
    one = await client.files.create(file=("one.jsonl", content), purpose="fine-tune")
    two = await client.files.create(
        file=("two.jsonl", io.BytesIO(content)),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (one.filename, one.bytes, one.purpose, one.status) == ("one.jsonl", len(content), "fine-tune", "processed")
    assert two.expires_at == two.created_at + 3600
    assert await client.files.retrieve(one.id) == one
    assert (await client.files.content(two.id)).content == content
    assert {file.id async for file in client.files.list()} == {one.id, two.id}
    assert [file.id async for file in client.files.list(limit=1, purpose="fine-tune")] == [one.id]
    assert [file.id async for file in client.files.list(limit=1)] == [file.id async for file in client.files.list()]
    contents = tmp_path / "callboard-data" / "files" / "content"
    assert len(list(contents.iterdir())) == 1, "what is in both is kept once"
    assert (await client.files.delete(one.id)).deleted
    assert (await client.files.content(two.id)).content == content
    assert (await client.files.delete(two.id)).deleted
    assert not list(contents.iterdir())
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(one.id)


async def test_files_and_jobs_by_the_client_without_async(client: openai.AsyncOpenAI) -> None:
    def talk() -> None:
        with openai.OpenAI(base_url=str(client.base_url), api_key="none", max_retries=0, timeout=30) as plain:
            file = plain.files.create(file=("one.jsonl", chats()), purpose="fine-tune")
            assert [one.id for one in plain.files.list()] == [file.id]
            assert plain.files.content(file.id).content == chats()
            assert plain.files.delete(file.id).deleted
            assert list(plain.fine_tuning.jobs.list()) == []
            with pytest.raises(openai.NotFoundError):
                plain.fine_tuning.jobs.list_events("ftjob-0")

    await anyio.to_thread.run_sync(talk)


async def test_files_have_no_more_room_than_they_are_given(client: openai.AsyncOpenAI) -> None:
    async def upload(fill: bytes, size: int) -> openai.types.FileObject:
        return await client.files.create(file=("f", fill * size), purpose="user_data")

    with pytest.raises(openai.APIStatusError, match="max_file_mib") as refused:
        await upload(b"a", 1 << 20)
    assert refused.value.status_code == 413
    for fill in (b"a", b"b"):
        await upload(fill, 900_000)
    with pytest.raises(openai.APIStatusError, match="delete some"):
        await upload(b"c", 900_000)
    await upload(b"b", 900_000)  # it is there already


@pytest.mark.parametrize(
    ("request_", "param", "said"),
    [
        ({"json": {}}, None, "multipart/form-data"),
        ({"data": {"purpose": "fine-tune"}, "files": {"other": b""}}, "file", "missing"),
        ({"data": {"purpose": "fun"}, "files": {"file": b"x"}}, "purpose", "expected one of fine-tune"),
        ({"files": {"file": b"x"}}, "purpose", "expected one of"),
        ({"data": {"purpose": "fine-tune", "expires_after[seconds]": "1"}, "files": {"file": b"x"}},
         "expires_after.seconds", "3600"),
        ({"content": b"nothing", "headers": {"content-type": "multipart/form-data"}}, None, "boundary"),
        ({"content": b"nothing", "headers": {"content-type": "multipart/form-data; boundary=x"}}, None, "body"),
    ],
)  # fmt: skip
async def test_an_upload_that_is_wrong_is_refused(
    client: openai.AsyncOpenAI, request_: dict[str, Any], param: str | None, said: str
) -> None:
    async with httpx2.AsyncClient() as http:
        answer = await http.post(f"{client.base_url}files", **request_)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert said in error["message"]


# Fine-tuning


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unit_helper("train/tiny_models.py").write_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
async def trainable(server: OwnServer, base: Path, tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    """A company that serves a tiny model and may train it."""
    async with Node(bus=BusOptions(server.url), drain_timeout=4.0) as node:
        await node.spawn(Jobs, JobsConfig(str(tmp_path / "jobs")), name="train")
        await start_engine(node, base, dtype="float32", num_blocks=64, block_size=16)
        async with gateway(node, fine_tuning=SETTINGS) as url, client_of(url) as client:
            yield client


async def until_over(client: openai.AsyncOpenAI, job: str) -> Any:
    while (now := await client.fine_tuning.jobs.retrieve(job)).status in ("validating_files", "queued", "running"):
        await anyio.sleep(0.1)  # the API has no other way
    return now


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_model_is_fine_tuned_and_served_by_the_name_it_gets(trainable: openai.AsyncOpenAI, base: Path) -> None:
    client = trainable
    file = await client.files.create(file=("chats.jsonl", chats()), purpose="fine-tune")
    check = await client.files.create(file=("check.jsonl", chats(4)), purpose="fine-tune")
    job = await client.fine_tuning.jobs.create(
        model=str(base),
        training_file=file.id,
        validation_file=check.id,
        suffix="mine",
        seed=3,
        metadata={"for": "a test"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 2.0}},
        },
    )
    assert job.status in ("queued", "running")
    assert job.hyperparameters.to_dict() == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 2.0}
    over = await until_over(client, job.id)
    assert (over.status, over.error) == ("succeeded", None)
    assert over.trained_tokens > 100
    assert over.finished_at >= over.created_at
    assert over.fine_tuned_model.startswith("ft:tiny:mine:")
    assert (over.seed, over.metadata) == (3, {"for": "a test"})
    assert [one.id async for one in client.fine_tuning.jobs.list()] == [job.id]

    events = [event async for event in client.fine_tuning.jobs.list_events(job.id, limit=7)]
    assert len({event.id for event in events}) == len(events)
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message.startswith("Created")
    data: list[Any] = [event.data for event in events]
    losses = [one["train_loss"] for one in data if "train_loss" in one]
    assert len(losses) == 12
    assert losses[0] < losses[-1]  # the newest is first
    assert sum("full_valid_loss" in one for one in data) == 3
    assert sorted(event.created_at for event in events) == [event.created_at for event in reversed(events)]

    say: Any = [{"role": "user", "content": "old tree"}]
    options: Any = {"messages": say, "max_tokens": 8, "temperature": 0}
    plain = await client.chat.completions.create(model=str(base), **options)
    tuned = await client.chat.completions.create(model=over.fine_tuned_model, **options)
    assert tuned.choices[0].message.content != plain.choices[0].message.content
    assert over.fine_tuned_model in [model.id async for model in client.models.list()]
    kept = [one async for one in client.fine_tuning.jobs.checkpoints.list(job.id)]
    assert kept
    assert kept[0].metrics.full_valid_loss is not None
    for checkpoint in kept:
        name = checkpoint.fine_tuned_model_checkpoint
        assert (await client.chat.completions.create(model=name, **options)).choices
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model=f"{over.fine_tuned_model}:ckpt-step-999", **options)
    with pytest.raises(openai.BadRequestError, match="finished"):
        await client.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.NotFoundError, match="is an adapter"):
        await client.fine_tuning.jobs.create(model=over.fine_tuned_model, training_file=file.id)
    assert (await client.models.delete(over.fine_tuned_model)).deleted
    for asked in (client.models.delete(over.fine_tuned_model), client.models.delete(str(base))):
        with pytest.raises(openai.NotFoundError):
            await asked
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model=over.fine_tuned_model, **options)
    assert (await client.fine_tuning.jobs.retrieve(job.id)).status == "succeeded"


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_preferences_are_learnt_paused_resumed_and_cancelled(trainable: openai.AsyncOpenAI, base: Path) -> None:
    client = trainable
    file = await client.files.create(file=("pairs.jsonl", pairs()), purpose="fine-tune")

    async def begin(epochs: int) -> str:
        job = await client.fine_tuning.jobs.create(
            model=str(base),
            training_file=file.id,
            method={"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": epochs, "batch_size": 4, "beta": 0.2}}},
        )
        assert job.method is not None
        assert job.method.type == "dpo"
        return job.id

    job = await begin(400)
    while not [event async for event in client.fine_tuning.jobs.list_events(job) if event.type == "metrics"]:
        await anyio.sleep(0.1)  # the API has no other way
    assert (await client.fine_tuning.jobs.pause(job)).status == "paused"
    assert (await client.fine_tuning.jobs.resume(job)).status in ("queued", "running")
    cancelled = await client.fine_tuning.jobs.cancel(job)
    assert cancelled.status == "cancelled"
    assert cancelled.fine_tuned_model is None
    over = await until_over(client, await begin(2))
    assert (over.status, over.error) == ("succeeded", None)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_the_daemon_starts_what_trains_and_finishes_it_without_the_gateway(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board.at(tmp_path)
    for name, value in board.environment.items():
        monkeypatch.setenv(name, value)
    board.up()
    try:
        async with callboard.connect() as bus:
            config = GatewayConfig(fine_tuning=msgspec.structs.replace(SETTINGS, models=(str(base),)))
            kinds = {"one": True, "two": False}  # whether it is a process of its own, with a user of its own
            urls = {
                name: (await (await bus.spawn("gateway.http", config, name=name, process=alone)).ask(AskGateway())).url
                for name, alone in kinds.items()
            }
            async with client_of(urls["one"]) as client:
                file = await client.files.create(file=("chats.jsonl", chats()), purpose="fine-tune")
                job = await client.fine_tuning.jobs.create(model=str(base), training_file=file.id)
            await bus.stop("one")
            async with client_of(urls["two"]) as client:
                over = await until_over(client, job.id)
                assert (over.status, over.error) == ("succeeded", None)
    finally:
        board.close()


@pytest.mark.parametrize(
    ("content", "options", "param", "said"),
    [
        (b"hello\n", {}, "training_file", "plain text"),
        (b'{"messages": []}\n', {}, "training_file", "line 1"),
        (chats(), {"method": {"type": "dpo"}}, "training_file", "expected pairs of answers"),
        (pairs() + b"{}\n", {"method": {"type": "dpo"}}, "training_file", "line 9"),
        (chats(), {"method": {"type": "reinforcement"}}, "method.type", "expected supervised or dpo"),
        (chats(), {"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", ">= 1"),
        (chats(), {"validation_file": "file-0"}, "validation_file", "no file"),
        (chats(), {"suffix": "a b"}, "suffix", "matching regex"),
        (chats(), {"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations", "none"),
    ],
)
async def test_what_cannot_be_trained_on_is_said_at_once(
    node: Node, long_path: Path, content: bytes, options: dict[str, Any], param: str, said: str
) -> None:
    await start_engine(node, long_path)
    async with gateway(node) as url, client_of(url) as client:
        file = await client.files.create(file=("f", content), purpose="fine-tune")
        with pytest.raises(openai.BadRequestError) as refused:
            await client.fine_tuning.jobs.create(model=str(long_path), training_file=file.id, **options)
        assert refused.value.param == param
        assert said in refused.value.message
        assert [job async for job in client.fine_tuning.jobs.list()] == []
        with pytest.raises(openai.NotFoundError):
            await client.fine_tuning.jobs.retrieve("ftjob-" + "0" * 24)


async def test_without_a_daemon_nothing_trains_and_it_is_said(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path)
    async with gateway(node) as url, client_of(url) as client:
        file = await client.files.create(file=("f", chats()), purpose="fine-tune")
        with pytest.raises(openai.APIStatusError, match="callboard up") as refused:
            await client.fine_tuning.jobs.create(model=str(long_path), training_file=file.id)
        assert refused.value.status_code == 503
        assert [job async for job in client.fine_tuning.jobs.list()] == []


async def test_sessions_are_listed_pinned_and_dropped(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path)
    async with gateway(node) as url, client_of(url) as client, httpx2.AsyncClient(base_url=url) as http:
        say: Any = [{"role": "user", "content": "hello"}]
        more: Any = {"session_id": "mine", "session_ttl_s": 50}
        await client.chat.completions.create(model="", messages=say, max_tokens=4, extra_body=more)
        (session,) = (await http.get("/v1/sessions")).json()["data"]
        assert (session["id"], session["model"]) == ("mine", str(long_path))
        assert 40 < session["expires_in_s"] <= 50
        (pinned,) = (await http.post("/v1/sessions/mine", json={"ttl_s": 500})).json()["data"]
        assert 490 < pinned["expires_in_s"] <= 500
        wrong = await http.post("/v1/sessions/mine", json={"ttl_s": -1})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "ttl_s")
        assert (await http.delete("/v1/sessions/mine")).json()["deleted"]
        assert (await http.get("/v1/sessions")).json()["data"] == []
        for gone in (await http.delete("/v1/sessions/mine"), await http.post("/v1/sessions/mine", json={})):
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "gateway.session")
