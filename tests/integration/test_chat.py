"""`callboard chat` with the real model, daemon and engine process, as a person and as a script use it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from board import with_compiled_kernels

from callboard.actors.models.store import ModelStore

COMMAND = [sys.executable, "-m", "callboard.runtime.cli"]
FRANCE = "What is the capital of France? Answer in one sentence."

pytestmark = pytest.mark.timeout(120)


@dataclass(frozen=True)
class Board:
    """The command line on one state folder, with SmolLM2 in its store."""

    environment: dict[str, str]

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], env=self.environment, input=stdin, capture_output=True, text=True, timeout=90
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def engine_pid(self) -> int:
        actors = json.loads(self.run("actors", "engine", "--json").stdout)
        return next(actor["pid"] for actor in actors if actor["address"] == "engine.scheduler")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    data = Path.home() / ".cache" / "callboard-test"
    ModelStore(data / "models").pull("smollm2")
    base = tmp_path_factory.mktemp("chat")
    folders = {f"CALLBOARD_{name}_DIR": str(base / name.lower()) for name in ("STATE", "CACHE", "RUNTIME")}
    with_compiled_kernels(base / "cache")
    board = Board({**os.environ, **folders, "CALLBOARD_DATA_DIR": str(data)})
    up = board.run("up", "--detach")
    assert up.returncode == 0, up.stderr
    yield board
    board.run("down")


def test_two_first_questions_at_once_start_one_engine_and_both_are_answered(board: Board) -> None:
    asked = [board.start("chat", "-p", FRANCE, "--max-tokens", "20") for _ in range(2)]
    for chat in asked:
        answer, complaints = chat.communicate(timeout=90)
        assert chat.returncode == 0, complaints
        assert "Paris" in answer


def test_json_is_one_object_of_the_documented_shape(board: Board) -> None:
    done = board.run("chat", "-p", FRANCE, "--system", "You answer questions.", "--max-tokens", "5", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer) == {"text", "finish_reason", "usage", "timings"}
    assert set(answer["usage"]) == {"prompt_tokens", "completion_tokens"}
    assert set(answer["timings"]) == {"ttft_ms", "tokens_per_s"}
    assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 5)


def test_the_question_may_come_on_standard_input_and_only_the_answer_goes_to_standard_output(board: Board) -> None:
    done = board.run("chat", "--max-tokens", "20", stdin=FRANCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == board.run("chat", "-p", FRANCE, "--max-tokens", "20").stdout
    assert "tokens/s" not in done.stdout
    assert "tokens/s" in done.stderr


def test_a_seed_draws_the_same_answer_again(board: Board) -> None:
    drawn = ["chat", "-p", "Tell me a story.", "--temperature", "1.2", "--max-tokens", "12", "--seed"]
    first, again, other = (board.run(*drawn, seed).stdout for seed in ("1", "1", "2"))
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["-p", "x", "--temperature", "nan"], 1, "temperature nan"),
        (["-p", "x", "--max-tokens", "0"], 1, "max_tokens 0"),
        (["-p", "x", "--model", "other"], 1, "serves 'smollm2'"),
        (["-p", ""], 2, "prompt is empty"),
        (["-p", "x", "--max-tokens", "many"], 2, "invalid int"),
        (["-p", "x", "--min-p", "2"], 1, "min_p 2"),
        (["-p", "x", "--repetition-penalty", "0"], 1, "repetition_penalty 0"),
        (["-p", "x", "--adapter", "none"], 1, "no adapter named 'none'"),
        (["-p", "x", "--regex", "("], 1, "grammar (regex)"),
        (["-p", "x", "--json-schema", "/nowhere.json"], 2, "cannot be read"),
        (["-p", "x", "--json-schema", "{"], 1, "schema"),
        (["-p", "x", "--regex", "a", "--choice", "b"], 2, "not allowed with"),
    ],
)
def test_what_cannot_be_answered_is_one_line(board: Board, arguments: list[str], code: int, complaint: str) -> None:
    done = board.run("chat", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_an_answer_has_the_shape_that_is_asked_for(board: Board, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"capital": {"type": "string", "maxLength": 20}}, '
                      '"required": ["capital"], "additionalProperties": false}')  # fmt: skip
    for given in (str(schema), schema.read_text()):
        done = board.run("chat", "-p", FRANCE, "--json-schema", given, "--max-tokens", "60")
        assert done.returncode == 0, done.stderr
        assert set(json.loads(done.stdout)) == {"capital"}
    done = board.run("chat", "-p", FRANCE, "--choice", "Berlin", "--choice", "Madrid")
    assert done.stdout.strip() in ("Berlin", "Madrid")
    done = board.run("chat", "-p", FRANCE, "--regex", "[0-9]{4}")
    assert len(done.stdout.strip()) == 4
    assert done.stdout.strip().isdigit()


def test_a_second_question_of_a_session_computes_only_what_is_new(board: Board) -> None:
    """The system's part of the prompt is long; the second question repeats it and shares nothing else."""
    asked = ["chat", "--system", "You answer questions. " * 60, "--session", "s", "--max-tokens", "2", "--json"]
    first, second = (json.loads(board.run(*asked, "-p", text).stdout) for text in ("Hello!", "Bye!"))
    assert first["usage"]["prompt_tokens"] > 240
    assert second["timings"]["ttft_ms"] < first["timings"]["ttft_ms"] / 2


def test_without_a_daemon_the_exit_code_says_not_reachable(board: Board, tmp_path: Path) -> None:
    done = board.run("chat", "-p", "x", "--state-dir", str(tmp_path / "nobody"))
    assert done.returncode == 3
    assert "callboard up" in done.stderr


def test_interrupting_a_question_ends_it_with_130_and_frees_the_engine(board: Board) -> None:
    chat = board.start("chat", "-p", "Tell me a very long story.", "--max-tokens", "2000")
    assert chat.stdout is not None
    chat.stdout.read(10)
    chat.send_signal(signal.SIGINT)
    _, complaints = chat.communicate(timeout=30)
    assert chat.returncode == 130
    assert "Traceback" not in complaints
    assert board.run("chat", "-p", FRANCE, "--max-tokens", "4").returncode == 0


def test_an_engine_killed_in_the_middle_is_one_line_and_the_next_question_is_answered(board: Board) -> None:
    chat = board.start("chat", "-p", "Tell me a very long story.", "--max-tokens", "2000")
    assert chat.stdout is not None
    chat.stdout.read(10)
    killed = board.engine_pid()
    os.kill(killed, signal.SIGKILL)
    _, complaints = chat.communicate(timeout=30)
    assert chat.returncode in (1, 3)
    assert complaints.startswith("callboard: ")
    assert "Traceback" not in complaints
    answered = board.run("chat", "-p", FRANCE, "--max-tokens", "20")
    assert "Paris" in answered.stdout, answered.stderr
    assert board.engine_pid() != killed


class Terminal:
    """A person at a terminal."""

    def __init__(self, board: Board, *arguments: str) -> None:
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.execve(COMMAND[0], [*COMMAND, *arguments], board.environment)
        self._seen = b""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def until(self, text: str, timeout: float = 60.0) -> str:
        """What appeared up to and with `text`."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self._seen:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not appear after {self._seen!r}"
            self._seen += os.read(self._terminal, 4096)
        shown, _, self._seen = self._seen.partition(text.encode())
        return (shown + text.encode()).decode()

    def interrupt_to_its_end(self) -> None:
        """A signal that comes in the moment between readline's look for one and its wait for a key is noticed with the
        next, as it is for people."""
        ended = os.pidfd_open(self.pid)
        try:
            for _ in range(10):
                os.kill(self.pid, signal.SIGINT)
                if select.select([ended], [], [], 3.0)[0]:
                    return
        finally:
            os.close(ended)

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(status)


def test_ctrl_c_stops_the_answer_and_twice_leaves_the_conversation(board: Board) -> None:
    terminal = Terminal(board, "chat")
    terminal.until("> ")
    terminal.type("Tell me a very long story about a dragon.\n")
    terminal.until("\n")
    terminal.until("dragon")
    terminal.type("\x03")
    terminal.until("(stopped; Ctrl-C again leaves)")
    terminal.until("> ")
    terminal.type(f"{FRANCE}\n")
    terminal.until("sentence.")
    assert "Paris" in terminal.until("tokens/s")
    terminal.until("> ")
    terminal.type("Tell me a very long story about a dragon.\n")
    terminal.until("\n")
    terminal.until("dragon")
    terminal.type("\x03")
    terminal.until("leaves)")
    terminal.until("> ")
    terminal.interrupt_to_its_end()
    assert terminal.wait() == 130


def test_end_of_input_leaves_the_conversation(board: Board) -> None:
    terminal = Terminal(board, "chat")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.wait() == 0
