"""One attempt at an answer over HTTP: the request, the time-outs, the stream of events, and its errors as ours."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from ....runtime.errors import ConfigError, MissingExtra
from .config import Api, UpstreamConfig
from .errors import UpstreamCutOff, UpstreamError, UpstreamLost, UpstreamTimeout
from .secret import read_key
from .sse import Event, EventDecoder
from .statuses import error_of_status, no_stream

if TYPE_CHECKING:
    import httpx2

# More of an error's body is not read.
MAX_ERROR_BYTES = 64 << 10


class Connection:
    """The endpoint's address, our key, and connections that are kept open between requests.

    `open` raises UpstreamError; its texts never hold the key, whatever the endpoint says.
    """

    def __init__(self, config: UpstreamConfig) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise MissingExtra.of("agents", "an upstream model") from error
        self._config = config
        self._url = config.url()
        self._key = read_key(config)
        context = True
        if config.ca_file:
            try:
                context = ssl.create_default_context(cafile=config.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"ca_file {config.ca_file} holds no certificates that can be read: {error}"
                ) from error
        self._client = httpx2.AsyncClient(
            verify=context,
            timeout=httpx2.Timeout(None, connect=config.connect_s, write=config.first_byte_s),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=config.concurrency),
            # A key must not follow wherever an answer points.
            follow_redirects=False,
        )

    async def close(self) -> None:
        await self._client.aclose()

    def key_changed(self) -> bool:
        """Read the key again. Whether it is another one now; an unreadable file leaves the old one."""
        try:
            key = read_key(self._config)
        except ConfigError:
            return False
        changed = key != self._key
        self._key = key
        return changed

    @contextlib.asynccontextmanager
    async def events(self, body: dict[str, Any]) -> AsyncIterator[AsyncGenerator[Event]]:
        """Send a request; iterate what the endpoint streams. Leaving the block closes the connection unless all of the
        answer was read."""
        import httpx2

        try:
            async with contextlib.AsyncExitStack() as stack:
                response = await self._response(stack, body)
                stream = self._read(response)
                stack.push_async_callback(stream.aclose)
                yield stream
        except UpstreamError as error:
            raise self._without_key(error) from None  # a cause would be logged with it, and may hold the key
        except httpx2.HTTPError as error:
            raise self._without_key(_typed(error, self._config)) from None
        except (OSError, ssl.SSLError) as error:
            raise UpstreamLost(self._key.redact(f"the connection failed: {error}")) from None

    async def _response(self, stack: contextlib.AsyncExitStack, body: dict[str, Any]) -> httpx2.Response:
        config = self._config
        request = self._client.build_request(
            "POST", self._url, content=msgspec.json.encode(body), headers=self._headers()
        )
        with _in_time(config.connect_s + config.first_byte_s, "did not begin to answer"):
            response = await self._client.send(request, stream=True)
        stack.push_async_callback(response.aclose)
        if response.status_code != 200:
            raise error_of_status(response.status_code, response.headers, await self._error_body(response))
        content_type = response.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != "text/event-stream":
            raise no_stream(content_type)
        return response

    async def _read(self, response: httpx2.Response) -> AsyncGenerator[Event]:
        config = self._config
        decoder = EventDecoder()
        patience = config.first_byte_s
        async with contextlib.aclosing(response.aiter_bytes()) as chunks:
            while True:
                with _in_time(patience, "sent nothing more"):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                patience = config.chunk_s
                for event in decoder.feed(chunk):
                    yield event

    async def _error_body(self, response: httpx2.Response) -> bytes:
        body = b""
        with contextlib.suppress(UpstreamTimeout):  # the status alone says enough
            with _in_time(self._config.chunk_s, "did not say what is wrong"):
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ERROR_BYTES:
                        break
        return body[:MAX_ERROR_BYTES]

    def _headers(self) -> dict[str, str]:
        config = self._config
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        if config.api is Api.ANTHROPIC:
            headers["anthropic-version"] = config.anthropic_version
        if self._key:
            key = self._key.reveal()
            if config.key_header:
                headers[config.key_header] = key
            elif config.api is Api.ANTHROPIC:
                headers["x-api-key"] = key
            else:
                headers["authorization"] = f"Bearer {key}"
        return headers

    def _without_key(self, error: UpstreamError) -> UpstreamError:
        clean = type(error)(self._key.redact(str(error)), hint=self._key.redact(error.hint))
        clean.retry_after = error.retry_after
        return clean


@contextlib.contextmanager
def _in_time(seconds: float, what: str) -> Iterator[None]:
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError:
        raise UpstreamTimeout(f"the endpoint {what} within {seconds:g} s") from None


def _typed(error: httpx2.HTTPError, config: UpstreamConfig) -> UpstreamError:
    import httpx2

    said = str(error) or type(error).__name__
    if isinstance(error, httpx2.ConnectTimeout):
        return UpstreamTimeout(f"no connection to the endpoint within {config.connect_s:g} s")
    if isinstance(error, httpx2.TimeoutException):
        return UpstreamTimeout(f"the endpoint did not take the request in time: {said}")
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError | httpx2.UnsupportedProtocol):
        return UpstreamLost(f"no connection to the endpoint: {said}")
    return UpstreamCutOff(f"the connection to the endpoint broke: {said}")
