"""The trainer itself under the daemon: a tiny LLaMA whose run is killed at every joint, and one that is left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from board import Board
from training import attempts, losses, same_bits, shards_of, steps, written
from unit_helpers import unit_helper

import callboard
from callboard.actors.train.follow import ensure_jobs, follow_job
from callboard.schemas.train import (
    BatchSettings,
    CheckpointSettings,
    ComputeSettings,
    HookSettings,
    JobState,
    Method,
    OptimizerSettings,
    RunTraining,
    ShardSettings,
    TrainConfig,
    TrainEvent,
    TrainJob,
    TrainNote,
    TrainProgress,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

WORDS = ["red", "blue", "old", "new", "tree", "stone", "river", "sings", "falls", "sleeps"]
STEPS = 24


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    site = tmp_path / "site"
    site.mkdir()
    shutil.copy(Path(__file__).parent / "train_gates.py", site)
    board = Board.at(tmp_path, PYTHONPATH=str(site))
    for name, value in board.environment.items():
        monkeypatch.setenv(name, value)
    board.up()
    yield board
    board.close()


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., TrainConfig]:
    tiny_models = unit_helper("train/tiny_models.py")
    model, data, chance = tiny_models.write_model(tmp_path / "tiny"), tmp_path / "chats.json", random.Random(3)
    said = [" ".join(chance.choices(WORDS, k=chance.randint(2, 12))) for _ in range(80)]
    data.write_text(json.dumps([{"instruction": said[i], "input": "", "output": said[i + 1]} for i in range(0, 80, 2)]))

    def make(out: str, **options: Any) -> TrainConfig:
        wanted: dict[str, Any] = {
            "model": str(model),
            "data": str(data),
            "out": str(tmp_path / out),
            "steps": STEPS,
            "batch": BatchSettings(samples=8, max_tokens=128, micro_tokens=256),
            "optimizer": OptimizerSettings(lr=5e-3, warmup=2),
            "compute": ComputeSettings(precision="float32", device="cpu", threads=1),
            "checkpoints": CheckpointSettings(every=4),
        }
        return TrainConfig(**{**wanted, **options})

    return make


async def kill(board: Board, bus: Any, job: str, what: str) -> None:
    match what:
        case "server":
            board.server().kill()
        case "daemon":
            os.kill(board.info().daemon_pid, signal.SIGKILL)
        case "coordinator":
            for actor in await bus.actors(f"train-{job}"):
                if actor.address == f"train-{job}":
                    os.kill(actor.pid, signal.SIGKILL)
        case shard:
            while len(shards := await shards_of(bus, job)) <= int(shard):
                await anyio.sleep(0.01)  # a group that is just being made
            os.kill(shards[int(shard)].pid, signal.SIGKILL)


async def trained(board: Board, bus: Any, job: str, config: TrainConfig, kills: dict[int, str]) -> list[TrainEvent]:
    """Follow it to its end, and kill something after each of these steps, where it is held."""

    def groups_until(step: int) -> int:
        """Each kill ends a group, but that of the server."""
        return 1 + sum(what != "server" for at, what in kills.items() if at < step)

    gates = Path(config.out).parent / f"{job}-gates"
    gates.mkdir()
    options = msgspec.json.encode({"folder": str(gates), "steps": list(kills)}).decode()
    config = msgspec.structs.replace(config, hooks=(HookSettings("train_gates:Gates", options),))
    jobs = await ensure_jobs(bus)
    folder = (await jobs.ask(RunTraining(config, job))).folder
    heard: list[TrainEvent] = []
    ends: list[TrainJob] = []
    async with anyio.create_task_group() as tasks:

        async def kill_now(step: int) -> None:
            # A group may get as far as this before it hears that its coordinator or the daemon was killed: that one is
            # held here until it ends, and the kill is meant for the next.
            while attempts(folder) < groups_until(step):
                await anyio.sleep(0.01)
            await kill(board, bus, job, kills[step])
            (gates / str(step)).touch()

        def hear(event: TrainEvent) -> None:
            heard.append(event)
            if isinstance(event, TrainProgress) and event.step in kills:
                tasks.start_soon(kill_now, event.step)

        ends.append(await follow_job(bus, job, hear))
    assert (ends[0].state, ends[0].error) == (JobState.FINISHED, None)
    why = [event.text for event in heard if isinstance(event, TrainNote)]
    assert attempts(folder) == groups_until(STEPS), why
    assert steps(heard) == steps(written(ends[0])) == list(range(1, STEPS + 1))
    return heard


def result(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next(iter(sorted(out.glob("*.safetensors")))))


async def compare(board: Board, make_config: Callable[..., TrainConfig], kills: dict[int, str], **options: Any) -> None:
    whole, broken = make_config("whole", **options), make_config("broken", **options)
    async with callboard.connect() as bus:
        heard = await trained(board, bus, "whole", whole, {})
        again = await trained(board, bus, "broken", broken, kills)
    assert losses(again) == losses(heard)
    assert same_bits(result(Path(broken.out)), result(Path(whole.out)))


@pytest.mark.slow
async def test_a_run_that_loses_its_shard_ends_in_the_same_adapter(
    board: Board, make_config: Callable[..., TrainConfig]
) -> None:
    await compare(board, make_config, {6: "0"})


@pytest.mark.slow
async def test_a_run_that_loses_everything_once_ends_in_the_same_model(
    board: Board, make_config: Callable[..., TrainConfig]
) -> None:
    kills = {3: "coordinator", 7: "1", 11: "server", 14: "daemon", 19: "0"}
    shards = ShardSettings(count=2, zero=3)
    optimizer = OptimizerSettings(lr=5e-3, warmup=2, ema=0.9)
    await compare(board, make_config, kills, method=Method.FULL, shards=shards, optimizer=optimizer)


@pytest.mark.slow
async def test_qlora_in_two_shards_with_eight_bit_moments_too(
    board: Board, make_config: Callable[..., TrainConfig]
) -> None:
    kills = {5: "daemon", 10: "1", 17: "coordinator"}
    optimizer = OptimizerSettings(lr=5e-3, warmup=2, bits=8)
    await compare(
        board, make_config, kills, method=Method.QLORA, shards=ShardSettings(count=2, zero=1), optimizer=optimizer
    )
