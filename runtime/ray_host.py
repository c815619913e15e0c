"""What runs on a Ray cluster: a Ray actor that has one of our processes, and that the process does not outlive.

Ray imports this by name on its node; nothing of ours is pickled but this module's name. Its answers are reports as an
actor's own process gives them (frames.py), so that they mean the same here as there.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from urllib.parse import urlsplit

import msgspec

from ..schemas.base import ErrorInfo
from ..schemas.runtime import PROTOCOL
from .blob_files import host_key
from .errors import ActorStopped, CallboardError, NotReachable, VersionMismatch, to_info
from .frames import Over, Start, Stop, pack, parse_report, read_frame
from .papers import Papers
from .processes import dying_with_us

REACH_TIMEOUT_S = 3.0


class Brought(msgspec.Struct, frozen=True, kw_only=True):
    """All that the process needs of the machine that sends it.

    `papers` are the contents of the files that `start` names; `host` and `ip` say which machine that is, and under
    which address the cluster knows it. `env` is added to the environment, and `host_env` where that machine is this
    one: it names folders.
    """

    start: Start
    papers: dict[str, bytes]
    env: dict[str, str]
    host_env: dict[str, str]
    host: str
    ip: str
    version: str
    protocol: int = PROTOCOL


class RayHost:
    """Its three calls run side by side: `begin` until the actor is ready or is not to be, then `wait` until its end,
    and `stop` meanwhile."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._first: Future[bytes] = Future()
        self._last: Future[bytes] = Future()

    def ip(self) -> str:
        """Answers once the Ray actor has been placed."""
        import ray.util

        return ray.util.get_node_ip_address()

    def begin(self, brought: bytes) -> bytes:
        """Start the process; its first report."""
        # To the kernel the thread that starts a process is its parent, so it is one that stays until its end.
        keeper = threading.Thread(target=self._keep, args=(brought,), name="keeper", daemon=True)
        keeper.start()
        return self._first.result()

    def wait(self) -> bytes:
        """The last report, once the process has ended."""
        return self._last.result()

    def stop(self, drain_timeout: float) -> None:
        """Tell the process to go; `wait` says when it has."""
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.write(pack(Stop(drain_timeout)))
            process.stdin.close()
        except OSError:
            return  # it has gone already

    def _keep(self, data: bytes) -> None:
        try:
            last = self._run(msgspec.msgpack.decode(data, type=Brought))
        except CallboardError as error:
            last = _over(error.to_info())
        except Exception as error:  # whatever this machine lacks: who waits for it must hear of it
            last = _over(to_info(error))
        if not self._first.done():
            self._first.set_result(last)
        self._last.set_result(last)

    def _run(self, brought: Brought) -> bytes:
        _check_release(brought)
        here = brought.host == host_key()
        start = brought.start
        papers = Papers()
        try:
            paths = {name: papers.put(name, content) for name, content in brought.papers.items()}
            start = msgspec.structs.replace(
                start,
                url=start.url if here else reachable(start.url, brought.ip),
                creds=paths.pop("creds", ""),
                tls=msgspec.structs.replace(start.tls, **paths),
                log_file=start.log_file if here else "",  # elsewhere it goes to Ray's own log of this process
            )
            return self._run_process(start, {**(brought.host_env if here else {}), **brought.env})
        finally:
            papers.close()

    def _run_process(self, start: Start, env: dict[str, str]) -> bytes:
        command = [sys.executable, "-m", "callboard.runtime.worker", start.name]
        with subprocess.Popen(
            dying_with_us(command, signal.SIGKILL),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
            bufsize=0,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            self._process = process
            try:
                process.stdin.write(pack(start))
                last = read_frame(process.stdout)
                if not isinstance(parse_report(last), Over):  # else it is said once nothing of it is left
                    self._first.set_result(last)
                    last = read_frame(process.stdout)
            except (BrokenPipeError, EOFError):
                last = b""
            code = process.wait()
        if last:
            return last
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return _over(ActorStopped(f"the process of {start.name} on the Ray cluster died ({how})").to_info())


def reachable(url: str, ip: str) -> str:
    """The server's URL for a machine that is not the one with that `ip`, which says `url` to it.

    A server that listens for other machines too is said to be at 127.0.0.1 on its own. Raises NotReachable where it
    listens there alone.
    """
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        return url
    port = parts.port or 4222
    try:
        socket.create_connection((ip, port), REACH_TIMEOUT_S).close()
    except OSError as error:
        raise NotReachable(
            f"the bus at {url} is for the machine {ip} alone, and Ray's node is another: {error.strerror or error}",
            hint="`callboard up --listen 0.0.0.0:4222 --tls-cert FILE --tls-key FILE` opens it to other machines",
        ) from error
    host = f"[{ip}]" if ":" in ip else ip
    return parts._replace(netloc=f"{host}:{port}").geturl()


def _check_release(brought: Brought) -> None:
    from .. import __version__

    if brought.protocol != PROTOCOL:
        raise VersionMismatch(
            f"Ray's node has callboard {__version__} (protocol {PROTOCOL}), "
            f"and who sends it an actor {brought.version} (protocol {brought.protocol})",
            hint="install the same release on all nodes of the Ray cluster",
        )


def _over(info: ErrorInfo) -> bytes:
    return msgspec.msgpack.encode(Over(info.code, info.message, info.hint, info.detail))
