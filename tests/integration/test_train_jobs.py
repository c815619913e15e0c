"""Jobs, coordinators and shards as real processes over a real bus: what they answer, and what is left of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from training import config, followed, jobs, node, same_bits, steps, unbroken, until_step, weights, written

from callboard.actors.data.errors import NoSuchData
from callboard.actors.train.job_folder import JobFolder, Wish
from callboard.runtime.bus import BusOptions
from callboard.runtime.client import Client
from callboard.runtime.errors import ConfigError
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.train import (
    CancelTraining,
    CheckData,
    JobState,
    ListTraining,
    OptimizerSettings,
    PauseTraining,
    ResumeTraining,
    RunTraining,
    TrainCheckpointed,
    TrainJob,
    TrainProgress,
)

__all__ = ["jobs", "node"]  # fixtures
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


async def test_a_run_is_followed_to_its_end_and_published(jobs: Ref, node: Node, tmp_path: Path) -> None:
    wanted = config(tmp_path / "out")
    async with node.listen("topic.train.progress.*", TrainProgress, TrainJob) as published:
        job = await jobs.ask(RunTraining(wanted))
        assert (job.job, job.state) == ("tiny-1", JobState.STARTING)
        end, heard = await followed(jobs, job.job)
        news = [await anext(published) for _ in range(13)]
    assert (end.state, end.step, end.num_steps, end.error) == (JobState.FINISHED, 12, 12, None)
    assert steps(heard) == list(range(1, 13))
    assert [event.step for event in heard if isinstance(event, TrainCheckpointed)] == [4, 8, 12]
    assert heard == written(end)
    assert {subject for subject, _ in news} == {"topic.train.progress.tiny-1"}
    assert [message.step for _, message in news] == [*range(1, 13), 12]
    assert news[-1][1].state is JobState.FINISHED
    assert same_bits(weights(tmp_path / "out"), unbroken(wanted, tmp_path).weights)
    assert (await followed(jobs, job.job, after=8))[1] == [event for event in heard if event.step > 8]
    assert (await jobs.ask(ListTraining())).jobs == (end,)


async def test_a_client_of_any_language_starts_and_asks_in_json(jobs: Ref, nats_server: Any, tmp_path: Path) -> None:
    wanted = {"model": "m", "data": "none", "out": str(tmp_path / "out")}
    async with Node(bus=BusOptions(nats_server.url)) as other:

        async def ask(**request: Any) -> dict[str, Any]:
            return json.loads(await Client(other).request_raw("actor.train", json.dumps(request).encode()))

        for _ in range(2):  # the same name is the same job
            answer = await ask(type="train.run", job="mine", config=wanted)
            assert (answer["type"], answer["job"]) == ("train.job", "mine")
        assert len((await ask(type="train.list"))["jobs"]) == 1
        answer = await ask(type="train.run", job="other", config={**wanted, "optimizer": {"lr": -1}})
        assert (answer["type"], answer["code"]) == ("error", "config")
        assert (await ask(type="train.cancel", job="mine"))["state"] == "cancelled"


async def test_data_is_looked_at_over_the_bus_before_a_run(jobs: Ref, tmp_path: Path, tiny_path: Path) -> None:
    said = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "b a"}]
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"messages": said}) + "\n" for _ in range(3)) + "{}\n")
    checked = await jobs.ask(CheckData(data=str(data), model=str(tiny_path), template="chatml", max_tokens=4))
    (found,) = checked.files
    assert (found.num_records, found.num_samples, found.num_bad, found.num_too_long) == (4, 3, 1, 3)
    assert 0 < found.num_loss_tokens < found.num_tokens
    assert "⟦b a" in found.sample
    with pytest.raises(NoSuchData):
        await jobs.ask(CheckData(data=str(tmp_path / "nowhere.jsonl")))


@pytest.mark.slow
async def test_a_run_is_paused_and_goes_on_to_the_same_weights(jobs: Ref, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wanted = config(tmp_path / "out", f"wait7={gate}", "pace=0.2")
    await jobs.ask(RunTraining(wanted, "run"))
    await until_step(jobs, "run", 6)
    paused: list[TrainJob] = []
    async with anyio.create_task_group() as tasks:

        async def pause() -> None:
            paused.append(await jobs.ask(PauseTraining("run")))

        tasks.start_soon(pause)
        while JobFolder(tmp_path / "jobs" / "run").wish() is not Wish.PAUSE:
            await anyio.sleep(0.01)  # a file says nothing when it changes
        gate.touch()
    (stopped,) = paused
    assert stopped.state is JobState.PAUSED
    assert 7 <= stopped.step < 12
    assert (Path(stopped.folder) / "checkpoints" / f"step-{stopped.step:08d}").is_dir()
    end, heard = await followed(jobs, "run")
    assert end == stopped
    assert steps(heard) == list(range(1, stopped.step + 1))
    assert (await jobs.ask(PauseTraining("run"))).state is JobState.PAUSED
    await jobs.ask(ResumeTraining("run"))
    end, heard = await followed(jobs, "run")
    assert end.state is JobState.FINISHED
    assert steps(heard) == steps(written(end)) == list(range(1, 13))
    assert same_bits(weights(tmp_path / "out"), unbroken(wanted, tmp_path).weights)


@pytest.mark.slow
async def test_a_cancelled_run_ends_at_once_and_keeps_its_checkpoints(jobs: Ref, node: Node, tmp_path: Path) -> None:
    await jobs.ask(RunTraining(config(tmp_path / "out", f"wait6={tmp_path / 'never'}"), "run"))
    await until_step(jobs, "run", 5)
    with anyio.fail_after(10):
        assert (await jobs.ask(CancelTraining("run"))).state is JobState.CANCELLED
    assert (tmp_path / "jobs" / "run" / "checkpoints" / "step-00000004").is_dir()
    assert "train-run" not in node.actors


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [("record", "data.record", "mend line 7"), pytest.param("disk", "train.no_room", "room", marks=pytest.mark.slow)],
)
async def test_what_trying_again_does_not_mend_fails_at_once(
    jobs: Ref, tmp_path: Path, kind: str, code: str, says: str
) -> None:
    await jobs.ask(RunTraining(config(tmp_path / "out", f"fail=3:{kind}"), "run"))
    end, heard = await followed(jobs, "run")
    assert end.state is JobState.FAILED
    assert end.error is not None
    assert end.error.code == code
    assert says in end.error.hint
    assert steps(heard) == [1, 2]


async def test_a_configuration_that_makes_no_sense_starts_nothing(jobs: Ref, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr = 0"):
        await jobs.ask(RunTraining(config(tmp_path / "out", optimizer=OptimizerSettings(lr=0.0))))
    with pytest.raises(ConfigError, match="no name for a job"):
        await jobs.ask(RunTraining(config(tmp_path / "out"), "../elsewhere"))
    assert (await jobs.ask(ListTraining())).jobs == ()
