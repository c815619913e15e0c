"""`callboard train` and its companions as a person and as a script use them, with a real daemon."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from board import Board
from train_standin import Standin
from training import SHARD, config, install_standin, losses, same_bits, unbroken, weights

from callboard.actors.train.here import folder_here, run_here
from callboard.actors.train.job_folder import JobFolder, Wish
from callboard.runtime.errors import UsageError
from callboard.schemas.train import JobState, ShardSettings, TrainEvent, TrainProgress

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    base = tmp_path_factory.mktemp("train")
    board = Board.at(base, PYTHONPATH=str(install_standin(base / "site")))
    board.up()
    done = board.run("spawn", "train.jobs", "--name", "train", "--config", json.dumps({"shard": SHARD}))
    assert done.returncode == 0, done.stderr
    yield board
    board.close()


def settings(tmp_path: Path, *does: str) -> Path:
    text = 'model = "tiny"\ndata = "none"\nout = "out"\nsteps = 12\n'
    text += "[optimizer]\nlr = 1e-2\n[batch]\nsamples = 8\n[checkpoints]\nevery = 4\n[compute]\nthreads = 1\n"
    path = tmp_path / "train.toml"
    path.write_text(f"{text}[samples]\nprompts = {json.dumps(does)}\n")
    return path


def test_a_run_from_start_to_end_prints_where_its_result_is(board: Board, tmp_path: Path) -> None:
    done = board.run("train", str(settings(tmp_path)), "--name", "whole")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert "job whole" in done.stderr
    assert "step 12/12" in done.stderr
    assert "Traceback" not in done.stderr
    assert same_bits(weights(tmp_path / "out"), unbroken(config(tmp_path / "out"), tmp_path).weights)
    again = board.run("train", "--attach", "whole", "--json")
    lines = [json.loads(line) for line in again.stdout.splitlines()]
    assert [line["step"] for line in lines if line["type"] == "train.progress"] == list(range(1, 13))
    assert (lines[-1]["type"], lines[-1]["state"]) == ("train.job", "finished")


@pytest.mark.slow
def test_a_run_is_left_found_paused_resumed_and_cancelled(board: Board, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    started = board.run("train", str(settings(tmp_path, f"wait7={gate}", "pace=0.3")), "--name", "mine", "--detach")
    assert (started.returncode, started.stdout) == (0, "mine\n")
    following = board.start("train", "--attach", "mine", "--json")
    assert following.stdout is not None
    for line in following.stdout:
        if json.loads(line)["step"] == 6:
            break
    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=20)
    assert following.returncode == 130
    assert "callboard train --attach mine" in said
    assert json.loads(board.run("jobs", "mine", "--json").stdout)["state"] == "running"
    pausing = board.start("pause", "mine")
    folder = JobFolder(board.paths.data / "train" / "mine")
    while folder.wish() is not Wish.PAUSE:
        time.sleep(0.01)  # a file says nothing when it changes
    gate.touch()
    assert pausing.wait(30) == 0
    listed = board.run("jobs").stdout.splitlines()
    assert listed[0].split() == ["JOB", "STATE", "STEP", "LOSS", "MODEL", "OUT"]
    assert any(line.split()[:2] == ["mine", "paused"] for line in listed)
    resumed = board.run("resume", "mine", "--json")
    assert json.loads(resumed.stdout)["state"] == "starting"
    cancelled = board.run("cancel", "mine")
    assert "cancelled" in cancelled.stdout, cancelled.stderr
    shown = board.run("jobs", "mine").stdout
    assert "cancelled" in shown
    assert str(folder.path) in shown


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["train", "m", "--data", "d", "--out", "o", "--lr", "0"], 2, "optimizer.lr = 0"),
        (["train", "none.toml"], 2, "there is no file none.toml"),
        (["train", "--attach", "nobody"], 1, "there is no job nobody"),
        (["train", "--attach", "nobody", "--lr", "1"], 2, "leave out its settings"),
        (["pause", "nobody"], 1, "there is no job nobody"),
        (["jobs", "nobody"], 1, "there is no job nobody"),
        (["train", "m", "--data", "d", "--out", "o", "--here", "--shards", "2"], 2, "one shard"),
        (["train", "m", "--data", "d", "--out", "o", "--name", "a b"], 2, "no name for a job"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_hint(board: Board, arguments: list[str], code: int, says: str) -> None:
    done = board.run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_what_went_wrong_in_training_is_the_commands_error(board: Board, tmp_path: Path) -> None:
    done = board.run("train", str(settings(tmp_path, "fail=3:record")), "--name", "bad")
    assert done.returncode == 1
    assert "data.jsonl:7: there is no answer" in done.stderr
    assert "mend line 7" in done.stderr
    assert "Traceback" not in done.stderr


# --here


def test_a_run_in_this_process_goes_on_after_its_last_checkpoint(tmp_path: Path) -> None:
    wanted, heard = config(tmp_path / "out"), list[TrainEvent]()

    class Broken(Exception): ...

    def break_off(event: TrainEvent) -> None:
        heard.append(event)
        if isinstance(event, TrainProgress) and event.step == 7:
            raise Broken

    with pytest.raises(Exception, match="Broken"):
        run_here(wanted, break_off, Standin)
    folder = JobFolder(folder_here(tmp_path / "out"))
    assert [found.step for found in folder.checkpoints()] == [4]
    with pytest.raises(UsageError, match="other settings"):
        run_here(config(tmp_path / "out", steps=13), heard.append, Standin)
    with pytest.raises(UsageError, match="one shard"):
        run_here(config(tmp_path / "out", shards=ShardSettings(count=2)), heard.append, Standin)
    end = run_here(wanted, heard.append, Standin)
    assert (end.state, end.step) == (JobState.FINISHED, 12)
    assert losses(heard)[-8:] == unbroken(wanted, tmp_path).losses[-8:]
    assert same_bits(weights(tmp_path / "out"), weights(tmp_path / "unbroken"))
    assert not folder.path.exists()
