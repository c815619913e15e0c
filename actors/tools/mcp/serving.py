"""The company's MCP server over stdio, for a host that starts it, and over HTTP, for hosts that know its token."""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings

from ....runtime.errors import ConfigError
from ....runtime.files import write_private
from .host_server import HostServer

PATH = "/mcp"
# Media come in as base64 within one request.
MAX_BODY = 64 << 20
MIN_TOKEN = 16
LOOPBACK = ("127.0.0.1", "localhost", "::1")


async def serve_stdio(host: HostServer) -> None:
    """Until standard input ends. What anything else here prints goes to standard error."""
    async with stdio_server() as (read_stream, write_stream), host.following():
        await host.server.run(read_stream, write_stream, host.options)


async def serve_http(host: HostServer, address: str, port: int, token: str, ready: Callable[[str], None]) -> None:
    """Until interrupted. `ready` is called with the URL. An empty token lets anybody in, on this machine alone.

    Raises ConfigError.
    """
    if not token and address not in LOOPBACK:
        raise ConfigError(
            f"without a token, tools are not offered to the network at {address}", hint="leave out --open"
        )
    try:
        listener = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"cannot listen at {address}:{port}: {error.strerror}") from error
    security = None
    if address not in LOOPBACK:
        # A web page that a name was turned on does not know the token.
        security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = host.server.streamable_http_app(
        streamable_http_path=PATH, host=address, transport_security=security, max_request_body_size=MAX_BODY
    )
    guarded = _Guarded(app, token) if token else app
    config = uvicorn.Config(guarded, log_config=None, access_log=False, lifespan="on")
    shown = f"[{address}]" if ":" in address else address
    with listener:
        async with host.following():
            ready(f"http://{shown}:{listener.getsockname()[1]}{PATH}")
            await uvicorn.Server(config).serve(sockets=[listener])


class _Guarded:
    """Lets in who shows the token."""

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(shown, self._expected):
                headers = [(b"www-authenticate", b"Bearer"), (b"content-type", b"text/plain")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b"show the token: Authorization: Bearer ...\n"})
                return
        await self._app(scope, receive, send)


def token_in(path: Path) -> str:
    """The token in a file, which is made with a new one where it is not there. Raises ConfigError."""
    try:
        found = path.read_text().strip()
    except FileNotFoundError:
        found = secrets.token_urlsafe(32)
        try:
            write_private(path, found + "\n", exclusive=True)
        except FileExistsError:  # another one that starts just now was first
            found = path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(found) < MIN_TOKEN:
        raise ConfigError(
            f"{path}: the token has less than {MIN_TOKEN} characters", hint="remove the file for a new one"
        )
    return found
