"""A Ray cluster on this machine, of one node in a process of its own, for the tests that place actors on one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from callboard.runtime.processes import dying_with_us, wait_exit

NUM_CPUS = 2
# How long the head has to open its port.
_OPEN_TIMEOUT_S = 20.0


class RayCluster:
    """Ends with the process that made it, and with `close`."""

    def __init__(self, port: int = 0) -> None:
        self._folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie in it, and their paths are bounded
        self.port = port or _free_port()
        self.address = f"127.0.0.1:{self.port}"
        client_port = _free_port()
        self.client_address = f"ray://127.0.0.1:{client_port}"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address", "127.0.0.1", "--port", str(self.port), "--temp-dir", self._folder]
        command += ["--num-cpus", str(NUM_CPUS), "--num-gpus", "0", "--object-store-memory", str(80 << 20)]
        command += ["--include-dashboard", "false"]
        command += ["--ray-client-server-port", str(client_port)]
        # Its server for clients forks a process for each, which gRPC's handlers of a fork may break before it begins.
        environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
        log = Path(self._folder) / "head.log"
        with log.open("wb") as output:
            self._head = subprocess.Popen(
                dying_with_us(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        _until_open(self.port, self._head, log)

    def processes(self) -> list[psutil.Process]:
        """Those of the head's node, the processes of our actors included."""
        return psutil.Process(self._head.pid).children(recursive=True)

    def close(self, by: signal.Signals = signal.SIGTERM) -> None:
        """End all of it, at once where that is by SIGKILL."""
        if self._head.poll() is None:
            others = self.processes()
            for process in others if by is signal.SIGKILL else ():
                _kill(process)
            self._head.send_signal(by)
            self._head.wait()
            for process in others:
                if not wait_exit(process, 5.0):
                    _kill(process)
        shutil.rmtree(self._folder, ignore_errors=True)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _until_open(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _OPEN_TIMEOUT_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)  # a port says nothing when it opens
