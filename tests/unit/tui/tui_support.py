"""What tests of the terminal UI name in their annotations: the daemon that they have, an app under test."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapshots import screen_text
from textual.pilot import Pilot

from callboard.runtime.client import Client, connect
from callboard.tui.app import CallboardApp

COMMAND = [sys.executable, "-m", "callboard.runtime.cli"]


@dataclass(frozen=True)
class Daemon:
    """A daemon with its bus, on a state folder of its own. `environment` is for commands that are to find it."""

    state: Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of `callboard`."""
        return subprocess.run([*COMMAND, *arguments], env=self.environment, capture_output=True, text=True, timeout=90)

    def up(self) -> None:
        done = self.run("up", "--detach")
        assert done.returncode == 0, done.stderr

    def down(self) -> None:
        self.run("down")

    @property
    def info(self) -> dict[str, Any]:
        return json.loads((self.state / "daemon.json").read_text())

    def connect(self) -> AbstractAsyncContextManager[Client]:
        """A client beside the app."""
        return connect(state_dir=str(self.state))


Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@dataclass(frozen=True)
class Running:
    """An app under test."""

    app: CallboardApp
    pilot: Pilot[None]

    @property
    def page(self) -> Any:
        return self.app.page

    def screen_text(self) -> str:
        """What a person reads, line by line."""
        return screen_text(self.app)


OpenApp = Callable[..., AbstractAsyncContextManager[Running]]


Picture = Callable[..., Awaitable[None]]
"""`await picture(app, name, replace=[(pattern, character)])`."""
