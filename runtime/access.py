"""How a process gets onto the bus: where the server is, and a user of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from .bus import BusOptions
from .errors import NotReachable


def mint(options: BusOptions, name: str) -> BusOptions:
    """Options for another process that is called `name`: with a user of its own where we hold the account's key.

    On a server of the user's own there is no such key, and its processes share the credentials they were given.
    """
    if not options.account:
        return replace(options, node_id=name)
    from .credentials import mint_user_file

    account = Path(options.account)
    creds = mint_user_file(account.parent / "creds" / f"{name}.creds", account.read_text("ascii").strip(), name, name)
    return replace(options, creds=str(creds), node_id=name)


@asynccontextmanager
async def bus_access(name: str, *, nats: str = "", creds: str = "", state_dir: str = "") -> AsyncIterator[BusOptions]:
    """Options for this process under `name`: the server at `nats`, else that of the daemon of the state folder, else
    the one that the settings name.

    A user that was minted for it goes again on exit. Raises NotReachable when there is none of these.
    """
    from .daemon_info import find_daemon
    from .folders import Paths

    daemon = None if nats else find_daemon(Paths.find(state_dir))
    if daemon is None:
        if not nats:
            from .settings import load_settings

            settings = load_settings()
            nats, creds = settings.nats, creds or settings.creds
        if not nats:
            raise NotReachable("no daemon is running here")
        yield BusOptions(nats, creds, name)
        return
    options = BusOptions(daemon.url, daemon.creds, name, daemon.account)
    if daemon.account:
        options = mint(options, name)
    try:
        yield options
    finally:
        if daemon.account:
            with suppress(FileNotFoundError):
                os.unlink(options.creds)
