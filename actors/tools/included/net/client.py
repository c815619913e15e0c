"""Requests within bounds: so many bytes, so many seconds, so many redirects, each of them checked anew."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import anyio

from ..optional import need
from .addresses import Network
from .errors import FetchFailed, FetchRefused

if TYPE_CHECKING:
    import httpx2

    from .transport import Resolve

MAX_URL = 8192
MAX_REDIRECTS = 8
_MAX_ENCODINGS = 2
_REDIRECTS = (301, 302, 303, 307, 308)
# What must not be shown to a host that it was not meant for.
_OF_THE_ORIGIN = ("authorization", "cookie", "proxy-authorization")
USER_AGENT = "callboard-tools/1 (+https://pypi.org/project/callboard/)"


@dataclass(frozen=True, slots=True)
class Bounds:
    """`seconds`: for the whole exchange, redirects included. `max_bytes`: of the body, after decompression."""

    seconds: float = 30.0
    max_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """`url`: where the answer came from after redirects. `mime`: lower case, without parameters."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def mime(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str:
        _, _, after = self.headers.get("content-type", "").lower().partition("charset=")
        return after.partition(";")[0].strip(" \"'")


class Client:
    """One per set of tools; closed by `aclose`. Requests of one client may run at once."""

    def __init__(
        self,
        allowed: Iterable[Network] = (),
        bounds: Bounds | None = None,
        *,
        user_agent: str = USER_AGENT,
        resolver: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        httpx2 = need("httpx2", "tools", "fetching from the web")
        from .transport import CheckedTransport, resolve

        self.bounds = bounds or Bounds()
        self._http: httpx2.AsyncClient = httpx2.AsyncClient(
            transport=CheckedTransport(allowed, resolver or resolve, tls),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(min(15.0, self.bounds.seconds)),
            headers={"user-agent": user_agent, "accept-encoding": "gzip, deflate"},
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Iterable[tuple[str, str]] = (),
        content: bytes | None = None,
        redirects: int = MAX_REDIRECTS,
    ) -> Answer:
        """Send a request, follow its redirects, and read the answer whole. `redirects` 0: a redirect is the answer.

        Raises FetchRefused before anything is sent where it may not go, and FetchFailed.
        """
        try:
            with anyio.fail_after(self.bounds.seconds):
                return await self._followed(method, url, dict(headers or {}), list(params), content, redirects)
        except TimeoutError as error:
            raise FetchFailed(f"{_host(url)} takes longer than {self.bounds.seconds:g} s") from error

    async def _followed(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        params: list[tuple[str, str]],
        content: bytes | None,
        redirects: int,
    ) -> Answer:
        self._http.cookies.clear()
        for _ in range(redirects + 1):
            check_url(url)
            request = self._built(method, url, headers, params, content)
            response = await self._http.send(request, stream=True)
            try:
                target = response.headers.get("location", "")
                if not redirects or response.status_code not in _REDIRECTS or not target:
                    return await self._read(response)
            finally:
                await response.aclose()
            following = urljoin(str(request.url), target)
            if _origin(following) != _origin(str(request.url)):
                headers = {name: value for name, value in headers.items() if name.lower() not in _OF_THE_ORIGIN}
            if response.status_code == 303 or (response.status_code in (301, 302) and method == "POST"):
                method, content = "GET", None
            url, params = following, []
        raise FetchFailed(f"more than {redirects} redirects", hint="the page leads round in circles; try another")

    def _built(self, method: str, url: str, headers: Mapping[str, str], params: Any, content: bytes | None) -> Any:
        import httpx2

        try:
            # No `params` at all keeps the query that the address has.
            return self._http.build_request(method, url, headers=headers, params=params or None, content=content)
        except httpx2.InvalidURL as error:
            raise FetchRefused(f"'{url[:200]}' is no web address: {error}") from error

    async def _read(self, response: httpx2.Response) -> Answer:
        size = response.headers.get("content-length", "")
        if size.isdigit() and int(size) > self.bounds.max_bytes:
            raise self._too_large(f"{int(size):,}")
        if response.headers.get("content-encoding", "").count(",") >= _MAX_ENCODINGS:
            raise FetchFailed("the answer is compressed many times over")
        pieces: list[bytes] = []
        room = self.bounds.max_bytes
        try:
            async for piece in response.aiter_bytes():
                room -= len(piece)
                if room < 0:
                    raise self._too_large(f"more than {self.bounds.max_bytes:,}")
                pieces.append(piece)
        except _decoding_error() as error:
            raise FetchFailed("the server's answer is compressed, and damaged") from error
        return Answer(str(response.url), response.status_code, _headers(response), b"".join(pieces))

    def _too_large(self, size: str) -> FetchFailed:
        return FetchFailed(f"the answer has {size} bytes; at most {self.bounds.max_bytes:,} are read")


def check_url(url: str) -> None:
    """Raises FetchRefused for what is no plain web address."""
    if len(url) > MAX_URL:
        raise FetchRefused(f"the address is longer than {MAX_URL} characters")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise FetchRefused(f"'{url[:200]}' is no web address: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise FetchRefused(f"'{url[:200]}' is no web address", hint="it begins with https:// or http://")
    if parts.username is not None or parts.password is not None:
        raise FetchRefused("an address with a name or password in it", hint="leave out what is before the @")
    if any(character <= " " or character == "\x7f" or character == "\\" for character in url):
        raise FetchRefused("an address with blanks, control characters or backslashes", hint="write them as %20")


def _headers(response: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.scheme, parts.hostname, port


def _host(url: str) -> str:
    return urlsplit(url).hostname or url[:100]


def _decoding_error() -> type[Exception]:
    import httpx2

    return httpx2.DecodingError
