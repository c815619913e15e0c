"""`callboard trace`, `metrics` and `logs` of a company that runs: what a request did, what was counted and said."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest
from board import Board

ADD = '{"type": "bench.add", "amount": 3}'


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    board = Board.at(tmp_path_factory.mktemp("watch"))
    board.up()
    spawned = board.run("spawn", "counter", "--name", "c")
    assert spawned.returncode == 0, spawned.stderr
    yield board
    board.close()


def said(board: Board, *arguments: str) -> str:
    done = board.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def traced(board: Board) -> str:
    """The identifier of a traced request."""
    done = board.run("publish", "--answer", "--trace", "actor.c", ADD)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["type"] == "bench.count"
    (identifier,) = [word for word in done.stderr.split() if len(word) == 32]
    return identifier


def test_a_traced_request_is_drawn_as_a_tree(board: Board, traced: str) -> None:
    tree = said(board, "trace", traced[:10])
    assert "bench.add" in tree
    assert "c" in tree.split()
    assert traced in said(board, "trace")
    spans = json.loads(said(board, "trace", traced, "--json"))["resourceSpans"]
    found = [span for resource in spans for scope in resource["scopeSpans"] for span in scope["spans"]]
    assert {span["traceId"] for span in found} == {traced}
    assert len(found) >= 2


def test_a_trace_that_nobody_knows_is_said_to_be_unknown(board: Board) -> None:
    done = board.run("trace", "f" * 32)
    assert done.returncode == 1
    assert "callboard trace" in done.stderr


def test_what_an_actor_has_handled_is_counted(board: Board, traced: str) -> None:
    (row,) = [line.split() for line in said(board, "metrics").splitlines() if line.startswith("c ")]
    (main,) = json.loads(said(board, "metrics", "--json"))
    (counted,) = [actor for actor in main["actors"] if actor["address"] == "c"]
    assert counted["handled"] == int(row[2]) >= 1
    text = said(board, "metrics", "--prometheus")
    assert [line for line in text.splitlines() if "handled" in line and '"c"' in line]


def test_logs_of_one_actor_name_it_and_leave_out_the_others(board: Board) -> None:
    spawned = board.run("spawn", "counter", "--name", "p", "--process")
    assert spawned.returncode == 0, spawned.stderr
    (pid,) = [actor["pid"] for actor in json.loads(said(board, "actors", "--json")) if actor["address"] == "p"]
    watch = board.watch_log("daemon")
    os.kill(pid, signal.SIGKILL)
    watch.wait("the process of p died")
    everything = [json.loads(line) for line in said(board, "logs", "-n", "1000", "--json").splitlines()]
    ours = [json.loads(line) for line in said(board, "logs", "-n", "1000", "--json", "--actor", "p").splitlines()]
    assert ours == [line for line in everything if line in ours]
    assert 0 < len(ours) < len(everything)


@pytest.mark.parametrize("role", ["client", "tool", "observer"])
def test_a_token_is_for_the_role_that_it_was_made_for(board: Board, role: str) -> None:
    made = json.loads(said(board, "creds", "token", "--role", role, "--json"))
    assert made["role"] == role
    (listed,) = [entry for entry in json.loads(said(board, "creds", "list", "--json")) if entry["name"] == made["name"]]
    assert (listed["role"], listed["state"]) == (f"join as {role}", "active")
