"""A real HTTP server on this machine whose answers a test writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes


Answer = Callable[["Handler"], None]


@dataclass
class WebServer:
    """`pages` says what a path answers; `seen` is what was asked. `over` is set when the test is done."""

    port: int = 0
    pages: dict[str, Answer] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def page(
        self,
        path: str,
        body: bytes | str,
        mime: str = "text/html; charset=utf-8",
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Answer `path` with that. Gives its address."""
        data = body.encode() if isinstance(body, str) else body

        def answer(handler: Handler) -> None:
            handler.send_response(status)
            handler.send_header("content-type", mime)
            handler.send_header("content-length", str(len(data)))
            for name, value in (headers or {}).items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data)

        self.pages[path] = answer
        return self.url + path

    def redirect(self, path: str, target: str, status: int = 302) -> str:
        return self.page(path, "", status=status, headers={"location": target})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: WebServer

    def answer(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.site.seen.append(Seen(self.command, parts.path, query, headers, self.rfile.read(length)))
        page = self.site.pages.get(parts.path)
        try:
            if page is None:
                self.send_error(404)
            else:
                page(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what was asked is in `seen`."""


@contextmanager
def serving() -> Iterator[WebServer]:
    site = WebServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    server.daemon_threads = True
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        site.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
