"""A program in a terminal of its own (a pty): what it writes, when it wrote it, and how much of a core it takes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil

from ...runtime.processes import dying_with_us
from .errors import ContenderFailed

WIDTH, HEIGHT = 120, 40
_STOP_S = 10.0
# What moves, colours and asks, between the letters of a word as of a sentence.
_CONTROLS = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[PX\]^_].*?(?:\x1b\\|\x07)|\x1b.", re.DOTALL)


class PtyProgram:
    """Everything that is written is read at once by a thread, as by a terminal: a full pipe would stop the program."""

    def __init__(self, process: psutil.Popen, master: int, began: float) -> None:
        self._process = process
        self._master = master
        self._began = began
        self._written = b""
        self._news = threading.Condition()
        self._is_measured = False
        self._over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, words: str, timeout: float) -> float:
        """Seconds from the start until `words` had been written. Raises ContenderFailed."""
        wanted = words.encode()
        with self._news:
            self._news.wait_for(lambda: self._over or wanted in self._plain(), timeout)
            now = time.perf_counter()
            if wanted not in self._plain():
                # Without the frames: a cursor that blinks in one draws it again and again.
                end = " ".join(self._plain().decode(errors="replace").replace("│", " ").split())[-600:]
                raise ContenderFailed(f"'{words}' did not come on the screen within {timeout:g} s", detail=end)
            return now - self._began

    def cpu_share(self, seconds: float) -> float:
        """The share of one core that it takes over so many seconds. What it writes from now on is not kept."""
        self._is_measured = True
        before, began = self._cpu_s(), time.perf_counter()
        time.sleep(seconds)  # the clock is what is measured
        return (self._cpu_s() - before) / (time.perf_counter() - began)

    def read_out(self) -> None:
        """Returns once all that it wrote has been read; it has ended by then."""
        self._reader.join(_STOP_S)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def _plain(self) -> bytes:
        return _CONTROLS.sub(b"", self._written)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # its end
            while data := os.read(self._master, 1 << 16):
                with self._news:
                    if not self._is_measured:  # then it writes for minutes, and nothing is waited for
                        self._written += data
                        self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()


@contextmanager
def pty_program(command: Sequence[str], variables: Mapping[str, str]) -> Iterator[PtyProgram]:
    """It runs on entry, and is gone on exit."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    environment = {**os.environ, **variables, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    for name in ("NO_COLOR", "TMUX", "STY", "TEXTUAL"):
        environment.pop(name, None)
    began = time.perf_counter()
    process = psutil.Popen(
        dying_with_us(command), stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    app = PtyProgram(process, master, began)
    try:
        yield app
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended by itself
            process.terminate()
        try:
            process.wait(_STOP_S)
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            process.kill()
            process.wait(_STOP_S)
        # Its number may be the next terminal's, of which the thread would then read what is not for it.
        app.read_out()
        os.close(master)
