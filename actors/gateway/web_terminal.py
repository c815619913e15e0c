"""The terminal interface in a browser, by textual-serve: each page that is opened runs the command in a process."""

from __future__ import annotations

import importlib
import ipaddress
import shlex
import socket
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from ...runtime.errors import ConfigError

TITLE = "Callboard"
_BUS = ("nats", "creds", "tls_ca", "tls_cert", "tls_key", "state_dir")


def command_of(args: Namespace) -> str:
    """`callboard tui` on the bus that `args` name."""
    words = [sys.executable, "-m", "callboard.runtime.cli", "tui"]
    for name in _BUS:
        value = getattr(args, name, None)
        if value:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def free_port(host: str) -> int:
    """One that is free at this moment: the page must know its address before it is served. Raises ConfigError."""
    try:
        with socket.create_server((host, 0)) as listening:
            return listening.getsockname()[1]
    except OSError as error:
        raise ConfigError(f"'{host}' is no address to listen on: {error.strerror or error}") from error


def terminal_server(command: str, host: str, port: int, names: Sequence[str] = ()) -> Any:
    """A server of textual-serve's, to be started by its `serve()`. Raises ImportError without it.

    Only its own page may open a terminal: a browser lets any site open a web socket to this machine, and tells where
    that site is from. `names`: further hosts that the page is opened under.
    """
    module: Any = importlib.import_module("textual_serve.server")
    web: Any = importlib.import_module("aiohttp.web")
    console: Any = importlib.import_module("rich.console")
    known = {host, "localhost", *names}

    class Guarded(module.Server):
        async def handle_websocket(self, request: Any) -> Any:
            origin = urlsplit(request.headers.get("Origin", ""))
            if origin.netloc != request.host or not _is_own(origin.hostname or "", known):
                raise web.HTTPForbidden(text="a terminal is opened by its own page only")
            return await super().handle_websocket(request)

        async def on_startup(self, app: Any) -> None:
            """Nothing is said: the address was printed."""

    server = Guarded(command, host=host, port=port, title=TITLE)
    server.console = console.Console(stderr=True)  # standard output is for the address
    return server


def _is_own(name: str, known: set[str]) -> bool:
    """A name that was pointed at this machine by others opens nothing."""
    if name in known:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
