"""The transport of httpx2 that connects to checked addresses only.

A name is resolved here, each address is checked, and the connection goes to that very address: there is no second look
at the name that could give another answer. TLS still verifies the certificate against the name.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, cast

import anyio
import httpcore2
import httpx2

from .addresses import Network, why_refused
from .errors import FetchFailed, FetchRefused

Resolve = Callable[[str, int], Awaitable[list[str]]]
# Where web servers are; the other ports below 1024 belong to protocols that an HTTP request could be made to speak.
_LOW_PORTS = (80, 443)
_TIMEOUTS = (httpcore2.TimeoutException, TimeoutError)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, by this machine's resolver. Raises FetchFailed."""
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchFailed(f"the name {host} has no address", hint="is the address right?") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections to those addresses of a name that may be reached."""

    def __init__(self, allowed: Iterable[Network], resolver: Resolve) -> None:
        self._allowed = tuple(allowed)
        self._resolve = resolver
        self._inner = cast(httpcore2.AsyncNetworkBackend, httpcore2.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        if port < 1024 and port not in _LOW_PORTS:
            raise FetchRefused(f"port {port} is for no web server")
        with anyio.fail_after(timeout):
            addresses = await self.checked(host, port)
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or FetchFailed(f"the name {host} has no address")

    async def checked(self, host: str, port: int) -> list[str]:
        """The addresses of a name that may be reached. Raises FetchRefused where none of them may."""
        refused = ""
        kept: list[str] = []
        for text in await self._resolve(host, port):
            try:
                why = why_refused(ipaddress.ip_address(text), self._allowed)
            except ValueError:
                why = "no address"
            if why:
                refused = f"{host} is {text}, which is {why}" if text != host else f"{host} is {why}"
            else:
                kept.append(text)
        if not kept and refused:
            raise FetchRefused(
                f"{refused}: this tool may not go there",
                hint="give a public address; the tool's option `allow` excepts networks",
            )
        return kept

    async def connect_unix_socket(self, path: str, *args: Any, **kwargs: Any) -> httpcore2.AsyncNetworkStream:
        raise FetchRefused("a Unix socket is no web server")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


@functools.cache
def _usual_tls() -> ssl.SSLContext:
    """Reading the authorities' certificates takes a tenth of a second: once in a process."""
    return httpx2.create_ssl_context(trust_env=False)


class _Body(httpx2.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._stream:
                yield piece
        except _TIMEOUTS as error:
            raise FetchFailed("the server stopped sending") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise FetchFailed(f"the connection broke: {error or type(error).__name__}") from error

    async def aclose(self) -> None:
        await self._stream.aclose()


class CheckedTransport(httpx2.AsyncBaseTransport):
    """For `httpx2.AsyncClient(transport=..., trust_env=False)`: no proxies, no pooled connections that outlive it."""

    def __init__(
        self, allowed: Iterable[Network] = (), resolver: Resolve = resolve, tls: ssl.SSLContext | None = None
    ) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls or _usual_tls(),
            max_connections=16,
            keepalive_expiry=15.0,
            network_backend=CheckedBackend(allowed, resolver),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = httpcore2.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        try:
            answer = await self._pool.handle_async_request(
                httpcore2.Request(
                    method=request.method,
                    url=url,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except _TIMEOUTS as error:
            raise FetchFailed(f"{request.url.host} does not answer in time") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.UnsupportedProtocol) as error:
            raise FetchFailed(f"{request.url.host} does not answer: {error or type(error).__name__}") from error
        return httpx2.Response(
            answer.status, headers=answer.headers, stream=_Body(answer.stream), extensions=answer.extensions
        )

    async def aclose(self) -> None:
        await self._pool.aclose()
