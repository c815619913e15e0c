"""What a job's folder promises to whoever is killed over it: whole files, one writer, each event once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.actors.train.attempts import MAX_STALLS, backoff, begin, note
from callboard.actors.train.errors import GaveUp, GroupReplaced, JobBusy, NoSuchJob
from callboard.actors.train.events import EventReader, EventWriter, Once, cut, last_progress, read_all
from callboard.actors.train.job_folder import JobFolder, Wish, all_jobs
from callboard.runtime.errors import NameTaken
from callboard.schemas.base import ErrorInfo
from callboard.schemas.train import (
    JobState,
    TrainCheckpointed,
    TrainConfig,
    TrainEvaluated,
    TrainEvent,
    TrainNote,
    TrainProgress,
    TrainSampled,
)

CONFIG = TrainConfig(model="m", data="d", out="o")


def progress(step: int, loss: float = 1.0) -> TrainProgress:
    return TrainProgress(
        job="job",
        step=step,
        num_steps=100,
        loss=loss,
        lr=0.1,
        grad_norm=1.0,
        tokens=1,
        loss_tokens=1,
        tokens_per_s=1.0,
        memory_bytes=1,
        eta_s=1.0,
    )


def saved(step: int) -> TrainCheckpointed:
    return TrainCheckpointed("job", step, f"step-{step:08d}", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder.create(tmp_path / "job", CONFIG)


def write(folder: JobFolder, *events: TrainEvent) -> None:
    writer = EventWriter(folder.events)
    for event in events:
        writer.write(event)
    writer.close()


def checkpoint(folder: JobFolder, step: int) -> None:
    (folder.checkpoints_folder / f"step-{step:08d}").mkdir()


# The folder


def test_a_job_is_there_whole_or_not_at_all(folder: JobFolder, tmp_path: Path) -> None:
    assert folder.job().config == CONFIG
    assert folder.status().state is JobState.STARTING
    assert folder.wish() is Wish.RUN
    with pytest.raises(NameTaken):
        JobFolder.create(folder.path, CONFIG)
    (tmp_path / ".half.new").mkdir()
    (tmp_path / "no-job").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "job.json").write_text("{")
    assert [job.name for job in all_jobs(tmp_path)] == ["job"]
    with pytest.raises(NoSuchJob, match="damaged"):
        JobFolder(tmp_path / "damaged").job()


def test_only_whole_checkpoints_count(folder: JobFolder) -> None:
    for step in (100, 20, 3):
        checkpoint(folder, step)
    for name in ("step-00000200.partial", ".step-00000300", "step-4", "best"):
        (folder.checkpoints_folder / name).mkdir()
    (folder.checkpoints_folder / "step-00000400").touch()
    assert [found.step for found in folder.checkpoints()] == [3, 20, 100]
    latest = folder.last_checkpoint()
    assert latest is not None
    assert latest.path.name == "step-00000100"


def test_a_damaged_checkpoint_gives_way_to_an_earlier_one_and_never_to_none(folder: JobFolder) -> None:
    assert folder.set_aside_damaged() is None
    for step in (3, 20):
        checkpoint(folder, step)
    aside = folder.set_aside_damaged()
    assert aside is not None
    assert aside.step == 20
    assert [found.step for found in folder.checkpoints()] == [3]
    assert folder.set_aside_damaged() is None
    assert [found.step for found in folder.checkpoints()] == [3]


HOLDER = """
import sys
from pathlib import Path
from callboard.actors.train.job_folder import JobFolder
with JobFolder(Path(sys.argv[1])).lock(1.0):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_is_free_when_its_holder_is_killed(folder: JobFolder) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(JobBusy), folder.lock(0.05):
            pass
        holder.kill()
        with folder.lock(10.0):
            pass


# Events


def test_what_comes_after_a_checkpoint_is_cut_and_its_own_event_is_there(folder: JobFolder) -> None:
    write(folder, TrainNote("job", 0, "begins"), *(progress(step) for step in range(1, 8)))
    cut(folder.events, saved(4), [TrainNote("job", 4, "again")])
    assert list(read_all(folder.events)) == [
        TrainNote("job", 0, "begins"),
        *(progress(step) for step in range(1, 5)),
        saved(4),
        TrainNote("job", 4, "again"),
    ]
    cut(folder.events, saved(4), [])
    assert list(read_all(folder.events)).count(saved(4)) == 1
    cut(folder.events, None, [])
    assert list(read_all(folder.events)) == [TrainNote("job", 0, "begins")]


def test_a_line_that_its_writer_was_killed_over_is_no_event(folder: JobFolder) -> None:
    write(folder, progress(1), progress(2))
    whole = folder.events.read_bytes()
    for length in range(len(whole) // 2 + 1, len(whole) - 1):
        folder.events.write_bytes(whole[:length])
        assert list(read_all(folder.events)) == [progress(1)]
        assert last_progress(folder.events) == progress(1)


def test_the_last_step_is_found_behind_much_else(folder: JobFolder) -> None:
    assert last_progress(folder.events) is None
    write(folder, *(progress(step) for step in range(1, 900)))
    write(folder, saved(899), TrainNote("job", 899, "x" * 1000))
    assert last_progress(folder.events) == progress(899)


def test_a_reader_sees_each_step_once_over_any_number_of_cuts(folder: JobFolder) -> None:
    reader, heard = EventReader(folder.events), list[TrainEvent]()
    write(folder, progress(1), progress(2), saved(2), progress(3), progress(4))
    heard += reader.read()
    assert reader.read() == []
    for _ in range(2):
        cut(folder.events, saved(2), [])
        write(folder, progress(3))
        heard += reader.read()
        write(folder, progress(4), progress(5))
        heard += reader.read()
    reader.close()
    assert heard == [progress(1), progress(2), saved(2), progress(3), progress(4), progress(5)]
    assert EventReader(folder.events, after=3).read() == [progress(4), progress(5)]


def run_of(steps: int, every: int) -> list[TrainEvent]:
    events: list[TrainEvent] = []
    for step in range(1, steps + 1):
        events.append(progress(step))
        if step % every == 0:
            events += [
                TrainEvaluated("job", step, 1.0, True),
                *(TrainSampled("job", step, prompt, "!") for prompt in ("a", "b")),
                saved(step),
            ]
    return events


@settings(max_examples=200)
@given(st.integers(1, 6), st.lists(st.integers(1, 60), max_size=6))
def test_a_run_that_is_broken_off_anywhere_is_heard_as_one_that_was_not(every: int, breaks: list[int]) -> None:
    """Each group begins after the last checkpoint that was told, and is broken off after so many events."""
    whole = run_of(20, every)
    once, heard, begin_at = Once(), list[TrainEvent](), 0
    for length in (*breaks, len(whole)):
        for event in whole[begin_at : begin_at + length]:
            if once.is_new(event):
                heard.append(event)
            if isinstance(event, TrainCheckpointed):
                begin_at = whole.index(event) + 1
    assert heard == whole


# Attempts


def test_a_group_begins_after_the_last_checkpoint_under_a_number_of_its_own(folder: JobFolder) -> None:
    first = begin(folder, notes=[])
    assert (first.record.attempt, first.checkpoint, first.step) == (1, None, 0)
    write(folder, *(progress(step) for step in range(1, 7)))
    checkpoint(folder, 4)
    second = begin(folder, notes=["again"])
    assert (second.record.attempt, second.step, second.record.furthest, second.record.stalls) == (2, 4, 6, 0)
    assert [event.step for event in read_all(folder.events)] == [1, 2, 3, 4, 4, 4]
    assert second.notes == [TrainNote("job", 4, "again")]
    folder.check_attempt(2)
    with pytest.raises(GroupReplaced):
        folder.check_attempt(1)


def test_attempts_that_get_no_further_are_given_up(folder: JobFolder) -> None:
    write(folder, progress(1))
    for number in range(MAX_STALLS + 1):
        attempt = begin(folder, notes=[])
        assert attempt.record.stalls == number
        cause = ErrorInfo("train.shard", "it broke", "mend it")
        folder.write_record(msgspec.structs.replace(attempt.record, error=cause))
        write(folder, progress(1))
    with pytest.raises(GaveUp, match="it broke") as error:
        begin(folder, notes=[])
    assert error.value.hint == "mend it"
    write(folder, progress(2))
    assert begin(folder, notes=[]).record.stalls == 0


def test_waiting_for_nodes_is_no_fault_of_the_job(folder: JobFolder) -> None:
    for _ in range(MAX_STALLS + 5):
        assert begin(folder, notes=[], waited=True).record.stalls == 0


def test_a_note_between_groups_is_in_the_file(folder: JobFolder) -> None:
    begin(folder, notes=[])
    note(folder, 0, "fewer")
    assert list(read_all(folder.events)) == [TrainNote("job", 0, "fewer")]


def test_attempts_come_ever_more_slowly() -> None:
    delays = [backoff(stalls) for stalls in range(MAX_STALLS + 1)]
    assert delays[:4] == [0.0, 0.5, 1.0, 2.0]
    assert delays == sorted(delays)
    assert delays[-1] == 30.0
