"""The processes that `callboard bench generate` holds against each other, ours among them.

Each loads its model once and then answers orders (`peers_generate/orders.py`); while one computes, the others wait for
a line and take no time: an order is over when its contender's processes rest, which may be a while after the answer.
What a process tree held at most is read from the kernel, not asked of it.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import psutil

from ...runtime.processes import dying_with_us, end_processes
from .errors import ContenderFailed

T = TypeVar("T")

# A peer may compile for minutes before it is ready.
READY_S = 900.0
ANSWER_S = 600.0
STOP_S = 10.0
# A contender rests when its processes took less than so much of a core over so long; it is waited for up to REST_S.
RESTING_SHARE, LOOK_S, REST_S = 0.05, 0.25, 30.0
# The last lines of what a contender said before it failed.
LAST_LINES = 3


class Ready(msgspec.Struct, frozen=True):
    """The first line of a contender. `versions`: of the packages that compute. `kernels`: which of ours do."""

    versions: dict[str, str]
    kernels: str = ""


class StepTimes(msgspec.Struct, frozen=True):
    """What an engine of ours counted meanwhile; see `EngineStats`."""

    steps: int
    step_seconds: float
    compute_seconds: float
    plan_seconds: float
    busy_seconds: float


class BatchAnswer(msgspec.Struct, frozen=True):
    """`lengths`: tokens of each answer. `first_s`: time to the first token of each, empty where nobody knows."""

    seconds: float
    lengths: tuple[int, ...]
    first_tokens: tuple[int, ...]
    first_s: tuple[float, ...]
    times: StepTimes | None = None


class Contender:
    """A process that answers orders. `start` loads its model; `close` ends it and whatever it started."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.peak_bytes = 0
        self.ready = Ready({})
        self._command = command
        self._env = env or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> None:
        """Raises ContenderFailed, with the last that it said."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (`close` closes it)
        self._process = subprocess.Popen(
            dying_with_us(self._command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **self._env},
        )
        self.ready = self._read(Ready, READY_S)

    def ask(self, order: msgspec.Struct, answer: type[T]) -> T:
        """Raises ContenderFailed where it ended, did not answer in time, or did not rest after its answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        except OSError as error:
            raise self._failed("it has ended") from error
        result = self._read(answer, ANSWER_S)
        self.peak_bytes = max(self.peak_bytes, self._tree_peak_bytes())
        self._rest()
        return result

    def _rest(self) -> None:
        """Wait until its processes rest: what they still do would be at the cost of whose turn is next."""
        until = time.monotonic() + REST_S
        used = self._cpu_seconds()
        while time.monotonic() < until:
            time.sleep(LOOK_S)  # nothing says when a process is idle
            before, used = used, self._cpu_seconds()
            if used - before < RESTING_SHARE * LOOK_S:
                return
        raise self._failed(f"its processes were still busy {REST_S:g} s after its answer")

    def _cpu_seconds(self) -> float:
        times = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                spent = process.cpu_times()
                times += spent.user + spent.system
        return times

    def close(self) -> None:
        if self._process is not None:
            tree = self._tree()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            # The end of its input is its sign to go; children of a peer that do not take it are ended.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
            end_processes([process for process in tree if process.is_running()], STOP_S)
            self._process.wait()
        if self._log is not None:
            self._log.close()

    def _read(self, kind: type[T], seconds: float) -> T:
        assert self._process is not None
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not readable:
            raise self._failed(f"it did not answer within {seconds:g} s")
        line = self._process.stdout.readline()  # a contender writes its line at once
        if not line:
            raise self._failed(f"it ended with status {self._process.wait()}")
        try:
            return msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError as error:
            raise self._failed(f"its answer makes no sense ({error})") from error

    def _failed(self, what: str) -> ContenderFailed:
        assert self._log is not None
        self._log.seek(0)
        lines = [line for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        hint = "its last words: " + " | ".join(lines[-LAST_LINES:]) if lines else "it said nothing"
        return ContenderFailed(f"the contender {self.name} failed: {what}", hint=hint)

    def _tree(self) -> list[psutil.Process]:
        assert self._process is not None
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _tree_peak_bytes(self) -> int:
        return sum(map(peak_bytes, (process.pid for process in self._tree())))


def peak_bytes(pid: int) -> int:
    """The most memory that a process held at once (VmHWM); 0 where the system does not tell, or it is gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def peer_program(name: str) -> str:
    return str(Path(__file__).with_name("peers_generate") / f"serve_{name}.py")


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Another process keeps one of our cores busy, from entry to exit."""
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    pin = "" if core is None else f"import os; os.sched_setaffinity(0, {{{core}}})\n"
    command = [sys.executable, "-I", "-S", "-c", f"{pin}print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(dying_with_us(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()
