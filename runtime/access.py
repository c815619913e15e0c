"""How a process gets onto the bus: where the server is, and a user of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .bus import BusOptions
from .errors import NotReachable
from .roles import NODE, Role

if TYPE_CHECKING:
    from .links import Links
    from .tls import Tls


def mint(options: BusOptions, name: str, file_name: str = "", role: Role = NODE) -> BusOptions:
    """Options for another process that is called `name`: with a user of its own where we hold the account's key.

    Its creds file is called as it is, or `file_name`. On a server of the user's own there is no such key, and its
    processes share the credentials they were given.
    """
    if not options.account:
        return replace(options, node_id=name)
    from .credentials import mint_user_file

    account = Path(options.account)
    file = account.parent / "creds" / f"{file_name or name}.creds"
    creds = mint_user_file(file, account.read_text("ascii").strip(), name, name, role)
    return replace(options, creds=str(creds), node_id=name)


async def mint_for_child(links: Links, name: str, role: Role) -> BusOptions:
    """`mint` for a process that this one starts. Where we came with a user of the daemon's but without its key, the
    daemon is asked to sign one, which is kept for the process's next life.

    Raises NotReachable where the daemon does not answer, CredentialsRefused where it does not know us any more.
    """
    options = links.options
    if options.account or not links.identity.may_mint:
        return mint(options, name, role=role)
    from .joining import child_creds

    return replace(options, creds=str(await child_creds(links, name, role)), node_id=name)


@asynccontextmanager
async def bus_access(
    name: str, *, nats: str = "", creds: str = "", state_dir: str = "", tls: Tls | None = None
) -> AsyncIterator[BusOptions]:
    """Options for this process under `name`: the server at `nats`, else that of the daemon of the state folder, else
    the one that the settings name.

    `creds` is a creds file for that server, `tls` how to trust it (default: as the settings say). Without `creds`, a
    user is minted for the daemon's embedded server, and goes again on exit. Raises NotReachable when there is no
    server to go to.
    """
    from .daemon_info import find_daemon
    from .folders import Paths

    paths = Paths.find(state_dir)
    daemon = None if nats else find_daemon(paths)
    if daemon is None:
        from .settings import load_settings

        settings = load_settings()
        if not nats:
            nats, creds = settings.nats, creds or settings.creds
        if not nats:
            raise NotReachable(f"no daemon is running on {paths.state}")
        yield BusOptions(nats, creds, name, tls=tls or settings.tls)
        return
    if creds or not daemon.account:
        yield BusOptions(daemon.url, creds or daemon.creds, name, tls=tls or daemon.tls)
        return
    # Under a file name of its own: another process may go by the same name, and needs its file to come back.
    options = mint(
        BusOptions(daemon.url, account=daemon.account, tls=daemon.tls), name, f"{name}.{secrets.token_hex(4)}"
    )
    try:
        yield options
    finally:
        with suppress(FileNotFoundError):
            os.unlink(options.creds)
