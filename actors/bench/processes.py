"""The processes that a benchmark runs: a nats-server of its own, the other side, and the command line itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...runtime.errors import NotReachable
from ...runtime.processes import dying_with_us
from ...runtime.server_config import find_binary

_STOP_S = 10.0


@contextmanager
def nats_server(config: str = "") -> Iterator[str]:
    """The URL of a plain server on a free port of this machine: floors and ours get the same one.

    `config` names a file with more to say to it.
    """
    more = ["--config", config] if config else []
    command = dying_with_us([str(find_binary()), "--addr", "127.0.0.1", "--port", "-1", *more])
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if "Server is ready" in line:
                break
        found = re.search(r"client connections on (\S+)", "".join(lines))
        if found is None:
            raise NotReachable(f"nats-server did not start: {''.join(lines[-3:])}")
        # A full pipe would stop the server.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield f"nats://{found[1]}"
        finally:
            process.terminate()
            process.wait(_STOP_S)


def _command(*arguments: str) -> list[str]:
    # -P: this folder's module names must not hide others'.
    return dying_with_us([sys.executable, "-P", "-m", "callboard.actors.bench.other_side", *arguments])


@contextmanager
def other_side(role: str, loop: str, url: str, *arguments: str) -> Iterator[None]:
    """The other process, ready on entry and gone on exit. `url`: of the server that it is a client of."""
    with subprocess.Popen(
        _command(role, loop, url, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise NotReachable(f"the benchmark's other process ({role}) did not start")
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(_STOP_S)


def output_of(role: str, *arguments: str) -> str:
    """What a role that measures by itself prints."""
    return subprocess.run(_command(role, *arguments), check=True, stdout=subprocess.PIPE, text=True).stdout


def callboard_command() -> list[str]:
    """The command line of this installation."""
    beside = Path(sys.executable).with_name("callboard")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "callboard.runtime.cli"]


def help_ms(count: int) -> list[float]:
    """Milliseconds until `callboard --help` has answered, after one call that fills the caches."""
    return [_timed([*callboard_command(), "--help"]) * 1000 for _ in range(count + 1)][1:]


def up_ready_s(count: int) -> list[float]:
    """Seconds until `callboard up --detach` says that the daemon is ready: fresh folders, so no model either."""
    taken: list[float] = []
    for _ in range(count):
        with tempfile.TemporaryDirectory(prefix="callboard-bench-") as folder:
            own = {f"CALLBOARD_{name}_DIR": f"{folder}/{name.lower()}" for name in ("STATE", "DATA", "CACHE")}
            try:
                taken.append(_timed([*callboard_command(), "up", "--detach"], own))
            finally:
                _timed([*callboard_command(), "down"], own)
    return taken


def callboard(*arguments: str, variables: Mapping[str, str]) -> float:
    """Run a command of ours to its end; the seconds that it took."""
    return _timed([*callboard_command(), *arguments], variables)


def _timed(command: Sequence[str], variables: Mapping[str, str] | None = None) -> float:
    began = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(variables or {})},
    )
    return time.perf_counter() - began
