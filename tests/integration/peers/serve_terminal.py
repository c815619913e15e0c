"""A small Textual application, and the server that `callboard web --tui` starts, for a command of the test's own."""

from __future__ import annotations

import shlex
import sys
from typing import ClassVar


def application() -> None:
    from textual.app import App, ComposeResult
    from textual.widgets import Label

    class Board(App[None]):
        BINDINGS: ClassVar = [("q", "quit", "Quit")]

        def compose(self) -> ComposeResult:
            yield Label("the company")

    Board().run()


def server() -> None:
    from callboard.actors.gateway.web_terminal import free_port, terminal_server

    port = free_port("127.0.0.1")
    serving = terminal_server(shlex.join([sys.executable, __file__, "app"]), "127.0.0.1", port)
    print(serving.public_url, flush=True)
    serving.serve()


application() if sys.argv[1:] == ["app"] else server()
