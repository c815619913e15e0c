"""What lies around a sandbox in its tests, and tells when something got out: files, sockets, a process, a variable."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from callboard.actors.tools.sandbox import RunResult, SandboxKilled

# Says in its own words which signal reached it, and goes on.
_VICTIM = """
import os, signal, sys
for number in range(1, 65):
    try:
        signal.signal(number, lambda got, frame: print("signal", got, flush=True))
    except (OSError, ValueError):
        pass
print("here", flush=True)
while True:
    signal.pause()
"""


class World:
    """`facts`: what an attempt is told about its surroundings, more than a real one could know."""

    def __init__(self, folder: Path) -> None:
        self.secret = secrets.token_hex(16)
        self._stack = ExitStack()
        self.folder = folder
        private = folder / "private"
        private.mkdir()
        private.chmod(0o755)
        folder.chmod(0o755)
        self.canary = private / "canary"
        self.canary.write_text(self.secret)
        self.canary.chmod(0o666)  # what keeps it is never its mode
        self.data = folder / "data"
        self.data.mkdir()
        (self.data / "given.txt").write_text("given")
        self.listeners = [self._tcp(socket.AF_INET, "127.0.0.1"), self._tcp(socket.AF_INET6, "::1"), self._udp()]
        self.abstract = f"callboard-{secrets.token_hex(4)}"
        self.listeners.append(self._unix("\0" + self.abstract, socket.SOCK_STREAM))
        self.listeners.append(self._unix(str(private / "stream"), socket.SOCK_STREAM))
        self.listeners.append(self._unix(str(private / "datagrams"), socket.SOCK_DGRAM))
        self.victim = subprocess.Popen([sys.executable, "-I", "-S", "-c", _VICTIM], stdout=subprocess.PIPE)
        assert self.victim.stdout is not None
        assert self.victim.stdout.readline() == b"here\n"
        os.set_blocking(self.victim.stdout.fileno(), False)
        # A descriptor that a careless host would let its children inherit, and a variable likewise.
        self._open = os.open(self.canary, os.O_RDWR)
        os.set_inheritable(self._open, True)
        os.environ["CALLBOARD_TEST_CREDENTIALS"] = self.secret
        shared = Path("/dev/shm") / f"callboard-{secrets.token_hex(4)}"
        shared.write_text(self.secret)
        shared.chmod(0o666)
        self._stack.callback(shared.unlink, missing_ok=True)
        self._before = self._seen()
        self.facts: dict[str, Any] = {
            "canary": str(self.canary),
            "private": str(private),
            "shared": str(shared),
            "here": os.getcwd(),
            "home": str(Path.home()),
            "host": os.getpid(),
            "victim": self.victim.pid,
            "group": os.getpgrp(),
            "descriptor": self._open,
            "tcp": self.listeners[0].getsockname()[1],
            "tcp6": self.listeners[1].getsockname()[1],
            "udp": self.listeners[2].getsockname()[1],
            "abstract": self.abstract,
            "stream": str(private / "stream"),
            "datagrams": str(private / "datagrams"),
            "program": sys.executable,
        }

    def _tcp(self, family: int, address: str) -> socket.socket:
        made = self._stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        made.bind((address, 0))
        made.listen()
        made.setblocking(False)
        return made

    def _udp(self) -> socket.socket:
        made = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.bind(("127.0.0.1", 0))
        made.setblocking(False)
        return made

    def _unix(self, address: str, kind: int) -> socket.socket:
        made = self._stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        made.bind(address)
        if not address.startswith("\0"):
            os.chmod(address, 0o777)
        if kind == socket.SOCK_STREAM:
            made.listen()
        made.setblocking(False)
        return made

    def told(self, program: str) -> str:
        """The program with the facts as `W`; the word itself stands nowhere in it, since errors quote the source."""
        program = program.replace("'ESCAPED'", "W['escaped']")
        facts = {**self.facts, "escaped": "ESCAPED"}
        return f"import json\nW = json.loads({json.dumps(facts)!r})\n{program}"

    def _seen(self) -> dict[str, tuple[int, int, int, int]]:
        found: dict[str, tuple[int, int, int, int]] = {}
        for path in sorted(self.folder.rglob("*")):
            entry = path.lstat()
            found[str(path)] = (entry.st_mode, entry.st_uid, entry.st_size, entry.st_mtime_ns)
        return found

    def check_untouched(self) -> None:
        """Nothing was reached: no byte at a socket, no signal at the process, no file other than it was."""
        for listener in self.listeners:
            assert not _came(listener), f"something reached {listener.getsockname()}"
        assert self.victim.poll() is None
        assert self.victim.stdout is not None
        assert self.victim.stdout.read() is None, "a signal reached a process outside"
        assert self.canary.read_text() == self.secret
        assert self._seen() == self._before

    def check_silent(self, result: RunResult | SandboxKilled) -> None:
        """Nothing came back that only the outside has, and no attempt says that it got through."""
        said = [result.stdout, result.stderr]
        if isinstance(result, RunResult):
            said += [result.value or "", result.error.traceback if result.error else ""]
            said += [file.path.read_bytes().decode(errors="replace") for file in (*result.files, *result.images)]
        whole = "\n".join(said)
        assert self.secret not in whole
        assert "ESCAPED" not in whole, whole

    def close(self) -> None:
        os.environ.pop("CALLBOARD_TEST_CREDENTIALS", None)
        os.close(self._open)
        self.victim.send_signal(signal.SIGKILL)
        self.victim.wait()
        assert self.victim.stdout is not None
        self.victim.stdout.close()
        self._stack.close()


def _came(listener: socket.socket) -> bool:
    try:
        if listener.type == socket.SOCK_DGRAM:
            listener.recv(1)
        else:
            listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True
