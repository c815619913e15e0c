"""What `callboard up` does: the daemon in this process or behind a guardian, and what it is to serve from the start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from .errors import CallboardError, from_info

if TYPE_CHECKING:
    from .daemon_info import DaemonInfo, StateLock
    from .folders import Paths
    from .served import Wish
    from .settings import Settings

READY_TIMEOUT_S = 90.0


async def foreground(
    paths: Paths, settings: Settings, lock: StateLock, wish: Wish, options: dict[str, Any], as_json: bool
) -> int:
    """Ends with an error where what is to be served cannot be."""
    import anyio

    from .daemon import log_to, run_foreground

    log_to(paths, settings.log_level)
    failures: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        async def serve_beside(info: DaemonInfo) -> None:
            try:
                await serve(info, wish, settings, options, as_json)
            except Exception as error:
                failures.append(error)
                os.kill(os.getpid(), signal.SIGTERM)  # as who stops it from outside: it drains

        def up(info: DaemonInfo) -> None:
            announce(info, as_json=as_json, more=bool(wish))
            if wish:
                tasks.start_soon(serve_beside, info)

        await run_foreground(paths, settings, lock, up)
        tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return 0


async def serve(info: DaemonInfo, wish: Wish, settings: Settings, options: dict[str, Any], as_json: bool) -> int:
    """Starts what is to be served on a daemon that is up, and says where it is."""
    from .client import connect
    from .served import start_served

    if not as_json and wish.model:
        print(f"{wish.model} is being loaded ...", file=sys.stderr, flush=True)
    async with connect(state_dir=info.state) as bus:
        served = await start_served(bus, wish, settings, options)
    if as_json:
        print(msgspec.json.encode(msgspec.to_builtins(info) | msgspec.to_builtins(served)).decode(), flush=True)
        return 0
    for name, url in (("http", served.http), ("grpc", served.grpc)):
        if url:
            print(
                f"{name}: {url}" + (f", keys in {served.keys}" if served.keys else ", for all who reach it"), flush=True
            )
    if served.model:
        print(f"{served.model} is ready", flush=True)
    return 0


def detach(paths: Paths, settings: Settings, lock_descriptor: int) -> DaemonInfo:
    """Starts the guardian, which inherits the lock, and waits for its first word."""
    from .daemon_orders import DaemonOrders, GuardianReport
    from .files import private_folder
    from .sd_notify import for_successor

    environment = dict(os.environ)
    for_successor(environment)
    log = private_folder(paths.logs) / "guardian.log"
    reader, writer = os.pipe()
    with log.open("ab") as output:
        guardian = subprocess.Popen(
            [sys.executable, "-P", "-m", "callboard.runtime.guardian", str(lock_descriptor), str(writer)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=paths.state,
            env=environment,
            pass_fds=(lock_descriptor, writer),
            # Not of this terminal: its hang-up and its Ctrl-C are not meant for the daemon.
            start_new_session=True,
        )
    os.close(writer)
    assert guardian.stdin is not None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with guardian.stdin as stdin:
            stdin.write(msgspec.json.encode(DaemonOrders.of(paths, settings)) + b"\n")
        line = _first_line(reader, READY_TIMEOUT_S)
    except BaseException:  # also Ctrl-C and SIGTERM: nothing is left behind that nobody waits for
        guardian.terminate()
        guardian.wait()
        raise
    finally:
        os.close(reader)
    if not line:
        raise CallboardError("the daemon ended before it was ready", hint=f"its log is {log}")
    report = msgspec.json.decode(line, type=GuardianReport)
    if report.info is None:
        guardian.wait()
        assert report.error is not None
        raise from_info(report.error)
    return report.info


def _first_line(descriptor: int, timeout_s: float) -> bytes:
    """Up to the first newline or the end of the pipe. CallboardError if that takes longer than `timeout_s`."""
    import select

    line = b""
    deadline = time.monotonic() + timeout_s
    while not line.endswith(b"\n"):
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise CallboardError(f"the daemon was not ready within {timeout_s:g} s", hint="`callboard logs` says more")
        part = os.read(descriptor, 1 << 16)
        if not part:
            return b""
        line += part
    return line


def announce(info: DaemonInfo, *, as_json: bool, more: bool) -> None:
    """With `more` to come, one JSON object says all of it at the end."""
    if as_json and more:
        return
    if as_json:
        print(msgspec.json.encode(info).decode(), flush=True)
        return
    print(f"callboard is up: pid {info.pid}, {info.url}, state in {info.state}", flush=True)
