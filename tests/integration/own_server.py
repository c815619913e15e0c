"""A nats-server that a test may kill, stop for a while, and start again on the same port."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from callboard.runtime.processes import dying_with_us
from callboard.runtime.server_config import find_binary


class OwnServer:
    """Runs from `start` to `kill`. It ends with the process that runs the tests, in any case."""

    def __init__(self, folder: Path, *options: str, host: str = "127.0.0.1") -> None:
        self._options = ("--addr", host, *options)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self._log = folder / "nats-server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it takes connections."""
        command = [str(find_binary()), "--port", str(self.port), "--log", str(self._log)]
        command += self._options
        self._log.unlink(missing_ok=True)
        self._process = subprocess.Popen(dying_with_us(command), stdin=subprocess.DEVNULL)
        while not (self._log.exists() and "Server is ready" in self._log.read_text()):
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.001)  # a file says nothing when it grows

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """`kill -9`: no client is told, the sockets just close."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        while number == signal.SIGSTOP and psutil.Process(self._process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)  # no event says so


@contextmanager
def own_server(folder: Path, *options: str, host: str = "127.0.0.1") -> Iterator[OwnServer]:
    """`options` go to its command line: `--jetstream`, say. It listens on `host`, and `url` is for this machine."""
    server = OwnServer(folder, *options, host=host)
    server.start()
    try:
        yield server
    finally:
        server.kill()
