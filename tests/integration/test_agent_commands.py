"""`callboard run`, `runs`, `approvals`, `approve`, `deny`, `replay` on a daemon of their own, with a scripted model."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest
from board import Board

pytestmark = pytest.mark.timeout(120)

ASKING = 'Thought: ask\nAction: ask_human\nAction Input: {"question": "which one?"}'


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    board = Board.at(tmp_path_factory.mktemp("agents"))
    board.up()
    answers = [
        {"text": ASKING, "match": "contains", "pattern": "Task: choose", "times": 0},
        {"text": "Thought: told\nFinal Answer: the red one", "match": "contains", "pattern": "red", "times": 0},
        {"text": "Final Answer: another", "times": 0},
    ]
    config = json.dumps({"answers": answers, "ordered": False})
    done = board.run("spawn", "agent.scripted", "--name", "play", "--config", config)
    assert done.returncode == 0, done.stderr
    yield board
    board.close()


def start(board: Board, task: str, *more: str) -> str:
    done = board.run("run", "react", task, "--model", "play", "--tools", "ask_human", "--detach", *more)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def approval(board: Board, run: str) -> str:
    while not (found := json.loads(board.run("approvals", "--run", run, "--json").stdout)):
        pass
    return found[0]["id"]


def test_a_task_is_done_and_the_answer_stands_alone(board: Board) -> None:
    done = board.run("run", "react", "anything", "--model", "play")
    assert (done.returncode, done.stdout) == (0, "another\n"), done.stderr
    assert done.stderr.startswith("run 0-")


def test_old_runs_are_removed_on_demand(board: Board) -> None:
    assert board.run("run", "react", "anything", "--model", "play").returncode == 0
    kept = board.run("runs", "--prune", "30d")
    assert (kept.returncode, kept.stdout) == (0, "0 runs removed\n"), kept.stderr
    assert json.loads(board.run("runs", "--json").stdout)
    wrong = board.run("runs", "--prune", "soon")
    assert wrong.returncode == 2
    assert "is no time" in wrong.stderr


@pytest.mark.slow
def test_a_question_waits_until_it_is_answered_and_the_run_is_shown(board: Board) -> None:
    run = start(board, "choose")
    id_ = approval(board, run)
    listed = board.run("approvals").stdout
    assert id_ in listed
    assert "which one?" in listed
    answered = board.run("approve", id_, "--text", "red", "--by", "ann", "--json")
    assert json.loads(answered.stdout)["by"] == "ann"
    attached = board.run("run", "--attach", run)
    assert (attached.returncode, attached.stdout) == (0, "the red one\n")
    shown = json.loads(board.run("run", "--show", run, "--json").stdout)
    assert [(step["kind"], step["status"]) for step in shown["steps"]] == [
        ("model", "ok"),
        ("tool", "ok"),
        ("model", "ok"),
    ]
    assert shown["steps"][2]["prompt"]["messages"][-1]["content"] == "Observation: red"
    assert shown["steps"][1]["approvals"][0]["by"] == "ann"
    text = board.run("run", "--show", run, "--full").stdout
    assert "user> Task: choose" in text
    listing = json.loads(board.run("runs", "--json").stdout)
    assert run in [info["run"] for info in listing]
    assert run in board.run("runs").stdout
    again = board.run("approve", id_, "--text", "blue", "--by", "bob")
    assert again.returncode == 1
    assert "answered already, by ann" in again.stderr


@pytest.mark.slow
def test_what_waits_is_answered_on_the_board_of_questions_that_came_with_the_agents(board: Board) -> None:
    run = start(board, "choose")
    id_ = approval(board, run)
    found: list[dict[str, str]] = []
    while not found:
        listed = json.loads(board.run("questions", "--json").stdout)["questions"]
        found = [one for one in listed if one["approval"] == id_]
    (question,) = found
    answered = board.run("questions", "answer", question["id"], '"red"', "--by", "ann")
    assert answered.returncode == 0, answered.stderr
    attached = board.run("run", "--attach", run)
    assert (attached.returncode, attached.stdout) == (0, "the red one\n")
    late = board.run("approve", id_, "--text", "blue", "--by", "bob")
    assert "answered already, by ann" in late.stderr


@pytest.mark.slow
def test_a_run_is_begun_again_from_a_step_of_it(board: Board) -> None:
    run = start(board, "choose")
    board.run("approve", approval(board, run), "--text", "red")
    board.run("run", "--attach", run)
    shown = json.loads(board.run("run", "--show", run, "--json").stdout)
    replayed = board.run("replay", run, "--from", shown["steps"][0]["id"], "--detach")
    assert replayed.returncode == 0, replayed.stderr
    board.run("deny", approval(board, replayed.stdout.strip()), "--why", "ask nobody")
    fork = json.loads(board.run("run", "--show", replayed.stdout.strip(), "--json").stdout)
    assert fork["forked_from"] == run
    assert board.run("replay", run, "--from", "nowhere").returncode == 2


@pytest.mark.slow
def test_ctrl_c_leaves_the_run_to_itself(board: Board) -> None:
    process = board.start("run", "react", "choose", "--model", "play", "--tools", "ask_human")
    assert process.stderr is not None
    run = process.stderr.readline().split()[1]
    id_ = approval(board, run)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert json.loads(board.run("run", "--pause", run, "--json").stdout)["status"] == "paused"
    assert json.loads(board.run("run", "--resume", run, "--json").stdout)["status"] == "waiting"
    assert json.loads(board.run("run", "--redirect", run, "something else", "--json").stdout)["run"] == run
    assert json.loads(board.run("run", "--cancel", run, "--json").stdout)["status"] == "cancelled"
    assert board.run("approve", id_, "--text", "late").returncode == 1


@pytest.mark.slow
def test_what_cannot_be_run_says_why(board: Board) -> None:
    for arguments, code, words in (
        (("run",), 2, "a planner and a task"),
        (("run", "reakt", "x", "--model", "play"), 1, "did you mean 'react'"),
        (("run", "react", "x", "--model", "play", "--option", "natve=true"), 1, "natve"),
        (("run", "--attach", "0-none"), 1, "there is no run 0-none"),
        (("approve", "0-none:t1"), 1, "nothing waits under"),
    ):
        done = board.run(*arguments)
        assert (done.returncode, words in done.stderr) == (code, True), (arguments, done)


@pytest.mark.slow
def test_the_daemon_is_killed_and_what_waits_is_there_again(board: Board) -> None:
    run = start(board, "choose")
    id_ = approval(board, run)
    os.kill(board.info().daemon_pid, signal.SIGKILL)
    while (done := board.run("approve", id_, "--text", "red")).returncode != 0:
        # Until the daemon, and with it the actor, is there again.
        assert "answered" not in done.stderr
    assert board.run("run", "--attach", run).stdout == "the red one\n"
