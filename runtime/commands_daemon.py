"""`callboard up`, `status`, `down`: the daemon from a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..schemas.company import CompanyState
from .command import Command, add_bus_options, add_json_option, add_state_option, paths_of, run_async, settings_of
from .errors import CallboardError, ConfigError, NotReachable, from_info

if TYPE_CHECKING:
    from .daemon_info import DaemonInfo, StateLock
    from .folders import Paths
    from .settings import Settings

READY_TIMEOUT_S = 90.0
# What the owner may take to end beyond its drain time: the daemon's last call, then the server.
STOP_TIMEOUT_S = 20.0


# up


def _configure_up(parser: ArgumentParser) -> None:
    parser.add_argument("-d", "--detach", action="store_true", help="return once it is ready, and leave it running")
    parser.add_argument("-c", "--company", metavar="FILE", help="the actors to run, in TOML (docs/operations.md)")
    parser.add_argument("--port", type=int, help="port of the embedded NATS server (default: a free one, then kept)")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="open the embedded server to other machines, with --tls-cert and --tls-key",
    )
    add_json_option(parser)
    add_bus_options(parser)


def _up(args: Namespace) -> int:
    from .daemon_info import take_lock

    settings = _absolute(_settings(args))
    if settings.company:
        from .company_file import load_company

        load_company(Path(settings.company))
    paths = paths_of(args)
    lock = take_lock(paths)
    if args.detach:
        _announce(_detach(paths, settings, lock.descriptor), as_json=args.json)
        if not settings.company:
            return 0
        from .commands_company import show_start

        return run_async(show_start, str(paths.state), args.json)
    return run_async(_foreground, paths, settings, lock, args.json)


async def _foreground(paths: Paths, settings: Settings, lock: StateLock, as_json: bool) -> int:
    from .daemon import log_to, run_foreground

    log_to(paths, settings.log_level)
    await run_foreground(paths, settings, lock, lambda info: _announce(info, as_json=as_json))
    return 0


def _detach(paths: Paths, settings: Settings, lock_descriptor: int) -> DaemonInfo:
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


def _settings(args: Namespace) -> Settings:
    """With `--tls-cert` and `--tls-key` taken for the server that they are for: our own, or the user's."""
    flags = {"server.port": args.port, "server.listen": args.listen, "company": args.company}
    if (args.tls_cert or args.tls_key) and not settings_of(args).nats:
        flags |= {"server.tls_cert": args.tls_cert, "server.tls_key": args.tls_key, "tls.cert": None, "tls.key": None}
    return settings_of(args, **flags)


def _absolute(settings: Settings) -> Settings:
    """The daemon does not run in this folder, so a path that was given from here is made absolute. Raises ConfigError
    where there is no such file, or where the server may not listen so."""
    from .server_config import listen_of
    from .tls import absolute

    server = settings.server
    server = msgspec.structs.replace(server, tls_cert=absolute(server.tls_cert), tls_key=absolute(server.tls_key))
    if not settings.nats:
        listen_of(server)
    if settings.creds and not Path(settings.creds).expanduser().is_file():
        raise ConfigError(f"there is no creds file {Path(settings.creds).expanduser().absolute()}")
    return msgspec.structs.replace(
        settings,
        company=absolute(settings.company),
        creds=absolute(settings.creds),
        tls=settings.tls.absolute(),
        server=server,
    )


def _announce(info: DaemonInfo, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(info).decode(), flush=True)
        return
    print(f"callboard is up: pid {info.pid}, {info.url}, state in {info.state}", flush=True)


up = Command("start the daemon with its own NATS server", _configure_up, _up)


# status


def _configure_status(parser: ArgumentParser) -> None:
    add_json_option(parser)
    add_state_option(parser)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What `callboard status --json` prints. `answers` says whether the daemon does; the counts are 0 if not.

    `company` is there where the daemon has a company file.
    """

    running: bool
    answers: bool = False
    pid: int = 0
    daemon_pid: int = 0
    url: str = ""
    embedded: bool = False
    state: str = ""
    version: str = ""
    uptime_s: float = 0.0
    daemon_restarts: int = 0
    nodes: int = 0
    actors: int = 0
    company: CompanyState | None = None


def _status(args: Namespace) -> int:
    from .cli import NOT_REACHABLE
    from .daemon_info import find_daemon

    paths = paths_of(args)
    info = find_daemon(paths)
    if info is None:
        if not args.json:
            raise NotReachable(f"no daemon is running on {paths.state}")
        print(msgspec.json.encode(Status(running=False, state=str(paths.state))).decode())
        return NOT_REACHABLE
    return run_async(_show_status, info, args.json)


async def _show_status(info: DaemonInfo, as_json: bool) -> int:
    from .cli import FAILED, NOT_REACHABLE, OK
    from .commands_company import print_company, stands_as_listed

    counts = await _counts(info)
    company = counts[2] if counts else None
    status = Status(
        running=True,
        answers=counts is not None,
        pid=info.pid,
        daemon_pid=info.daemon_pid,
        url=info.url,
        embedded=bool(info.account),
        state=info.state,
        version=info.version,
        uptime_s=round(time.time() - info.since, 1),
        daemon_restarts=info.daemon_restarts,
        nodes=counts[0] if counts else 0,
        actors=counts[1] if counts else 0,
        company=company,
    )
    if as_json:
        print(msgspec.json.encode(status).decode())
    else:
        state = f"up for {_duration(status.uptime_s)}" if status.answers else "there, but it does not answer"
        rows = [
            ("daemon", f"{state}, version {info.version}"),
            ("process", f"pid {info.pid}" + (f", node in {info.daemon_pid}" if info.daemon_pid != info.pid else "")),
            ("bus", f"{info.url} ({'embedded' if status.embedded else 'your own server'})"),
            ("state", info.state),
            ("restarts", str(info.daemon_restarts)),
        ]
        if status.answers:
            rows.append(("company", f"{_many(status.actors, 'actor')} on {_many(status.nodes, 'node')}"))
        if company is not None:
            rows.append(("file", company.file))
        for name, text in rows:
            print(f"{name:<9} {text}")
        if company is not None:
            print()
            print_company(company)
    if not status.answers:
        return NOT_REACHABLE
    return OK if company is None or stands_as_listed(company) else FAILED


async def _counts(info: DaemonInfo) -> tuple[int, int, CompanyState | None] | None:
    """Nodes and actors on the bus, this command's own left out, and the company; None when the daemon does not
    answer."""
    from .client import connect
    from .commands_company import get_company
    from .exception_groups import leaves

    try:
        async with connect(state_dir=info.state) as bus:
            nodes = [node for node in await bus.nodes() if node.node != bus.node.name]
            actors = [actor for actor in await bus.actors() if actor.node != bus.node.name]
            return len(nodes), len(actors), await get_company(bus)
    except (CallboardError, ExceptionGroup) as error:
        if not all(isinstance(leaf, CallboardError) for leaf in leaves(error)):
            raise
        return None


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


status = Command(
    "say whether the daemon runs, where, how it is, and hold the company file against it",
    _configure_status,
    _status,
    details="exit codes: 0 all is well, 1 the company is not as its file says, 3 no daemon answers",
)


# down


def _configure_down(parser: ArgumentParser) -> None:
    add_state_option(parser)


def _down(args: Namespace) -> int:
    import psutil

    from .daemon_info import find_daemon, find_owner
    from .processes import wait_exit

    paths = paths_of(args)
    owner = find_owner(paths)
    if owner is None:
        count = _end_leftovers(paths, settings_of(args).drain_timeout)
        print("callboard is not running" + (f"; ended {count} processes left over" if count else ""))
        return 0
    began = time.monotonic()
    bound = (find_daemon(paths) or settings_of(args)).drain_timeout + STOP_TIMEOUT_S
    try:
        process = psutil.Process(owner[0])
        process.terminate()
        how = "stopped"
        if not wait_exit(process, bound):
            process.kill()
            wait_exit(process, None)
            how = f"killed, since it did not stop within {bound:g} s"
    except psutil.NoSuchProcess:
        how = "had just stopped"
    count = _end_leftovers(paths, 1.0)
    more = f", and {count} processes it left over" if count else ""
    print(f"callboard (pid {owner[0]}) {how}{more}: {time.monotonic() - began:.1f} s")
    return 0


def _end_leftovers(paths: Paths, patience_s: float) -> int:
    """Under the lock, or not at all: another `up` may have taken it by now, and then nothing is left over."""
    from .daemon import end_leftovers
    from .daemon_info import AlreadyRunning, take_lock

    try:
        lock = take_lock(paths)
    except AlreadyRunning:
        return 0
    try:
        return len(end_leftovers(paths, patience_s))
    finally:
        lock.release()


down = Command("stop the daemon, letting work in hand finish", _configure_down, _down)
