"""The host's hold of the zygote: it is started once, and told of each sandbox with a message that nobody waits for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from typing import Any

import anyio.to_thread

from .config import SandboxConfig
from .errors import SandboxError
from .frames import pack
from .guest import Guest
from .parts import Kernel, Part

_END_S = 5.0
# Its sockets close a moment before the process is gone.
_ENDING_S = 1.0


class Zygote:
    """One process. Every method but `start` and `close` returns at once."""

    def __init__(self, config: SandboxConfig, kernel: Kernel, folder: str) -> None:
        self._config = config
        self._kernel = kernel
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (until `close`)
        self._count = 0

    async def start(self) -> None:
        """Start it. It is not waited for: what is ordered meanwhile waits for it."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-I", "-X", "utf8", "-m", f"{__package__}.zygote", str(theirs.fileno())]
            self._process = await anyio.to_thread.run_sync(self._open, command, theirs.fileno())
        self._socket = ours
        ours.sendall(pack(plan(self._config, self._kernel)))

    def _open(self, command: list[str], descriptor: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=[descriptor],
            # Nothing of the host's environment: it may name credentials. These keep libraries from starting threads.
            env={
                "PATH": os.defpath,
                "LANG": "C.UTF-8",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                # pyarrow's own jemalloc, which pandas brings along.
                "JE_ARROW_MALLOC_CONF": "background_thread:false",
            },
            cwd="/",
            start_new_session=True,
        )

    async def is_ending(self) -> bool:
        """Whether it has ended, or does so now."""
        process = self._process
        if process is None:
            return True
        return await anyio.to_thread.run_sync(_ends_soon, process)

    def order(self) -> Guest:
        """A sandbox that is being made. Raises SandboxError when the zygote is gone."""
        assert self._socket is not None
        self._count += 1
        own_mounts = Part.MOUNT_NAMESPACE in self._kernel.parts
        scratch = "" if own_mounts else os.path.join(self._folder, f"scratch-{self._count}")
        if scratch:
            os.mkdir(scratch, 0o700)
        guest, ends = Guest.create(self._config.limits, scratch)
        try:
            socket.send_fds(self._socket, [pack({"scratch": scratch})], ends)
        except OSError as error:
            guest.close()
            raise self.failure() from error
        finally:
            for end in ends:
                os.close(end)
        return guest

    def failure(self) -> SandboxError:
        """Why it ended, in its own words."""
        self._errors.seek(0)
        said = self._errors.read()[-4000:].decode(errors="replace").strip()
        last = said.splitlines()[-1] if said else "it said nothing"
        return SandboxError(f"the process that starts sandboxes ended: {last}", detail=said)

    async def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            process = self._process
            await anyio.to_thread.run_sync(_wait, process)
        self._errors.close()


def _ends_soon(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_S)  # it ends when its socket closes
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def plan(config: SandboxConfig, kernel: Kernel) -> dict[str, Any]:
    """The configuration as zygote.Plan takes it."""
    limits = config.limits
    return {
        "parts": [str(part) for part in kernel.parts],
        "landlock_abi": kernel.landlock_abi,
        "read": [os.path.realpath(path) for path in config.read],
        "aliases": [(path, real) for path in config.read if (real := os.path.realpath(path)) != os.path.normpath(path)],
        "preload": list(config.preload),
        "environment": dict(config.environment),
        "scratch_bytes": limits.scratch_bytes,
        "scratch_files": limits.scratch_files,
        "file_bytes": limits.file_bytes,
        "address_space": limits.address_space,
        "open_files": limits.open_files,
        "processes": limits.processes,
    }
