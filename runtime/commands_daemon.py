"""`callboard up`, `status`, `down`: the daemon from a terminal."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ..schemas.company import CompanyState
from .command import Command, add_bus_options, add_json_option, add_state_option, paths_of, run_async, settings_of
from .errors import CallboardError, ConfigError, NotReachable

if TYPE_CHECKING:
    from .daemon_info import DaemonInfo
    from .folders import Paths
    from .settings import Settings

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
    serve = parser.add_argument_group("what to serve")
    serve.add_argument("--model", help="load a model, and have it ready")
    serve.add_argument("--http", metavar="HOST:PORT", help="an HTTP gateway there: the APIs of OpenAI and Anthropic")
    serve.add_argument("--grpc", metavar="HOST:PORT", help="a gRPC gateway there: KServe v2")
    serve.add_argument(
        "--keys", metavar="FILE", help="who may ask the gateways (default: the file of `callboard gateway key`, if any)"
    )
    add_json_option(parser)
    add_bus_options(parser)


def _up(args: Namespace) -> int:
    from .bring_up import announce, detach, foreground, serve
    from .daemon_info import take_lock
    from .served import Wish, gateway_options, open_to_others

    settings = _absolute(_settings(args))
    if settings.company:
        from .company_file import load_company

        load_company(Path(settings.company))
    paths = paths_of(args)
    wish = Wish(model=args.model or "", http=args.http or "", grpc=args.grpc or "")
    options = gateway_options(settings, paths)
    if warning := open_to_others(wish, options):
        print(f"callboard: {warning}", file=sys.stderr)
    lock = take_lock(paths)
    if args.detach:
        info = detach(paths, settings, lock.descriptor)
        announce(info, as_json=args.json, more=bool(wish))
        if wish:
            run_async(serve, info, wish, settings, options, args.json)
        if not settings.company:
            return 0
        from .commands_company import show_start

        return run_async(show_start, str(paths.state), args.json)
    return run_async(foreground, paths, settings, lock, wish, options, args.json)


def _settings(args: Namespace) -> Settings:
    """With `--tls-cert` and `--tls-key` taken for the server that they are for: our own, or the user's."""
    flags = {
        "server.port": args.port,
        "server.listen": args.listen,
        "company": args.company,
        "model": args.model,
        "gateway.keys_file": args.keys,
    }
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


up = Command("start the daemon with its own NATS server", _configure_up, _up)


# status


def _configure_status(parser: ArgumentParser) -> None:
    add_json_option(parser)
    add_state_option(parser)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What `callboard status --json` prints. `answers` says whether the daemon does; the counts are 0 if not.

    `company` is there where the daemon has a company file. `gateways`: where each listens, by its name.
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
    gateways: dict[str, str] = {}


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
    company = counts.company if counts else None
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
        nodes=counts.nodes if counts else 0,
        actors=counts.actors if counts else 0,
        company=company,
        gateways=counts.gateways if counts else {},
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
        rows += [("gateway", f"{url or 'does not answer'} ({name})") for name, url in status.gateways.items()]
        for name, text in rows:
            print(f"{name:<9} {text}")
        if company is not None:
            print()
            print_company(company)
    if not status.answers:
        return NOT_REACHABLE
    return OK if company is None or stands_as_listed(company) else FAILED


class _Counts(NamedTuple):
    nodes: int
    actors: int
    company: CompanyState | None
    gateways: dict[str, str]


async def _counts(info: DaemonInfo) -> _Counts | None:
    """Nodes and actors on the bus, this command's own left out, the company, and gateways; None when the daemon does
    not answer."""
    from .client import connect
    from .commands_company import get_company
    from .exception_groups import leaves
    from .served import gateways

    try:
        async with connect(state_dir=info.state) as bus:
            nodes = [node for node in await bus.nodes() if node.node != bus.node.name]
            actors = [actor for actor in await bus.actors() if actor.node != bus.node.name]
            return _Counts(len(nodes), len(actors), await get_company(bus), await gateways(bus, actors))
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
