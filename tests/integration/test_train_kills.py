"""`kill -9` of whatever takes part in a run: it goes on by itself, to the very bits of one that was left alone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest
from board import Board
from training import (
    SHARD,
    attempts,
    config,
    followed,
    install_standin,
    jobs,
    node,
    same_bits,
    shards_of,
    steps,
    unbroken,
    until_step,
    weights,
    written,
)

import callboard
from callboard.actors.train.follow import JOBS, KIND, follow_job
from callboard.actors.train.jobs import JobsConfig
from callboard.runtime.daemon_info import find_daemon
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.train import (
    JobState,
    RunTraining,
    ShardSettings,
    TrainCheckpointed,
    TrainEvent,
    TrainJob,
    TrainNote,
)

__all__ = ["jobs", "node"]  # fixtures
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

TWO = ShardSettings(count=2)


def check_whole(end: TrainJob, heard: list[TrainEvent], num_steps: int = 12) -> None:
    """Every step and every checkpoint was heard and written once, in order."""
    assert (end.state, end.step, end.error) == (JobState.FINISHED, num_steps, None)
    for events in (heard, written(end)):
        assert steps(events) == list(range(1, num_steps + 1))
        saved = [event.step for event in events if isinstance(event, TrainCheckpointed)]
        assert saved == sorted(set(saved) | set(range(4, num_steps + 1, 4)))


@pytest.mark.slow
async def test_a_killed_shard_and_a_killed_coordinator_change_nothing(jobs: Ref, node: Node, tmp_path: Path) -> None:
    """The other shard is in a collective when its peer dies."""
    gates = tmp_path / "7", tmp_path / "11"
    wanted = config(tmp_path / "out", f"wait7={gates[0]}", f"wait11={gates[1]}", shards=TWO)
    await jobs.ask(RunTraining(wanted, "run"))
    ends: list[tuple[TrainJob, list[TrainEvent]]] = []
    async with anyio.create_task_group() as tasks:

        async def follow() -> None:
            ends.append(await followed(jobs, "run"))

        tasks.start_soon(follow)
        await until_step(jobs, "run", 6)
        os.kill((await shards_of(node, "run"))[1].pid, signal.SIGKILL)
        gates[0].touch()
        await until_step(jobs, "run", 10)
        os.kill(node.actors["train-run"].info().pid, signal.SIGKILL)
        gates[1].touch()
    end, heard = ends[0]
    check_whole(end, heard)
    assert attempts(end.folder) == 3
    notes = [event for event in heard if isinstance(event, TrainNote)]
    assert [note.step for note in notes] == [4]
    assert "SIGKILL" in notes[0].text
    assert same_bits(weights(tmp_path / "out"), unbroken(wanted, tmp_path).weights)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    board = Board.at(tmp_path, PYTHONPATH=str(install_standin(tmp_path / "site")))
    for name, value in board.environment.items():
        monkeypatch.setenv(name, value)
    yield board
    board.close()


async def test_a_killed_nats_server_and_a_killed_daemon_change_nothing(board: Board, tmp_path: Path) -> None:
    """Training does not stop for the server, and the daemon's next life finds the job."""
    gates = tmp_path / "7", tmp_path / "11"
    wanted = config(tmp_path / "out", f"wait7={gates[0]}", f"wait11={gates[1]}")
    heard: list[TrainEvent] = []
    reached = {step: anyio.Event() for step in range(13)}
    ends: list[TrainJob] = []

    def hear(event: TrainEvent) -> None:
        heard.append(event)
        reached[event.step].set()

    board.up()
    async with callboard.connect() as bus:
        jobs = await bus.spawn(KIND, JobsConfig(shard=SHARD), name=JOBS)
        job = await jobs.ask(RunTraining(wanted, "run"))
        async with anyio.create_task_group() as tasks:

            async def follow() -> None:
                ends.append(await follow_job(bus, "run", hear))

            tasks.start_soon(follow)
            await reached[6].wait()
            board.server().kill()
            gates[0].touch()
            await reached[10].wait()
            assert attempts(job.folder) == 1
            os.kill(board.info().daemon_pid, signal.SIGKILL)
            gates[1].touch()
    check_whole(ends[0], heard)
    assert attempts(job.folder) in (1, 2)  # a run may come to its end before it hears of the daemon's
    assert same_bits(weights(tmp_path / "out"), unbroken(wanted, tmp_path).weights)


@pytest.mark.slow
async def test_a_shard_that_stands_still_is_replaced(jobs: Ref, node: Node, tmp_path: Path) -> None:
    gate = tmp_path / "7"
    wanted = config(tmp_path / "out", f"wait7={gate}", shards=TWO)
    await jobs.ask(RunTraining(wanted, "run"))
    await until_step(jobs, "run", 6)
    os.kill((await shards_of(node, "run"))[1].pid, signal.SIGSTOP)
    gate.touch()
    end, heard = await followed(jobs, "run")
    check_whole(end, heard)
    assert same_bits(weights(tmp_path / "out"), unbroken(wanted, tmp_path).weights)


@pytest.mark.slow
async def test_a_damaged_checkpoint_is_set_aside_for_an_earlier_one(jobs: Ref, node: Node, tmp_path: Path) -> None:
    gate = tmp_path / "10"
    wanted = config(tmp_path / "out", f"wait10={gate}")
    job = await jobs.ask(RunTraining(wanted, "run"))
    await until_step(jobs, "run", 9)
    checkpoints = Path(job.folder) / "checkpoints"
    (checkpoints / "step-00000008" / "state.pt").write_bytes(b"not what it was")
    os.kill((await shards_of(node, "run"))[0].pid, signal.SIGKILL)
    gate.touch()
    end, heard = await followed(jobs, "run")
    check_whole(end, heard)
    assert (checkpoints / "step-00000008.damaged").is_dir()
    assert same_bits(weights(tmp_path / "out"), unbroken(wanted, tmp_path).weights)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(3))
async def test_kills_at_any_moment_change_nothing(board: Board, tmp_path: Path, seed: int) -> None:
    """Also while things start, and while what was killed before comes back."""
    chance = random.Random(seed)
    wanted = config(tmp_path / "out", "pace=0.02", steps=400, shards=TWO)
    heard: list[TrainEvent] = []
    board.up()
    async with callboard.connect() as bus:
        jobs = await bus.spawn(KIND, JobsConfig(shard=SHARD), name=JOBS)
        await jobs.ask(RunTraining(wanted, "run"))
        ends: list[TrainJob] = []
        async with anyio.create_task_group() as tasks:

            async def kill() -> None:
                for _ in range(10):
                    await anyio.sleep(chance.uniform(0.5, 8.0))
                    names = ("nats-server", "daemon", "train-run", "train-run-0", "train-run-1")
                    chosen = chance.choice(names)
                    for process in board.processes():
                        with contextlib.suppress(psutil.NoSuchProcess):
                            if process.name() == chosen or process.cmdline()[-1:] == [chosen]:
                                process.kill()
                    if chosen == "daemon" and (info := find_daemon(board.paths)) is not None:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(info.daemon_pid, signal.SIGKILL)

            tasks.start_soon(kill)
            ends.append(await follow_job(bus, "run", heard.append))
            tasks.cancel_scope.cancel()
    check_whole(ends[0], heard, 400)
    assert same_bits(weights(tmp_path / "out"), unbroken(wanted, tmp_path).weights)
