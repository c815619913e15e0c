"""What `callboard up`, the guardian and the daemon tell each other through pipes: a line of JSON each."""

from __future__ import annotations

import enum
import os
from pathlib import Path

import msgspec

from ..schemas.base import ErrorInfo
from .daemon_info import DaemonInfo
from .folders import Paths
from .processes import start_time
from .settings import Settings
from .tls import Tls


class DaemonOrders(msgspec.Struct, frozen=True, kw_only=True):
    """One line of JSON, all that a daemon process is told. End of file after it means: drain and go."""

    state: str
    data: str
    cache: str
    runtime: str
    settings: Settings
    url: str = ""
    account: str = ""
    beat_s: float = 0.0
    """How often the daemon is to say that it answers; 0: never."""

    @classmethod
    def of(cls, paths: Paths, settings: Settings, url: str = "", account: str = "") -> DaemonOrders:
        """With `url` left empty, what the guardian is told: it starts the server itself."""
        state, data, cache, runtime = (str(path) for path in (paths.state, paths.data, paths.cache, paths.runtime))
        return cls(state=state, data=data, cache=cache, runtime=runtime, settings=settings, url=url, account=account)

    @property
    def paths(self) -> Paths:
        return Paths(Path(self.state), Path(self.data), Path(self.cache), Path(self.runtime))

    @property
    def tls(self) -> Tls:
        """Whom this machine's processes trust on the way to the server: ours by the very certificate it was given."""
        return self.settings.tls if self.settings.nats else Tls(pinned=self.settings.server.tls_cert)

    def info(self, *, daemon_pid: int, since: float, daemon_restarts: int = 0) -> DaemonInfo:
        """What `daemon.json` shall say of a daemon that runs on these orders and that this process owns."""
        from .. import __version__

        return DaemonInfo(
            pid=os.getpid(),
            started=start_time(os.getpid()) or 0.0,
            daemon_pid=daemon_pid,
            url=self.url,
            creds=self.settings.creds if self.settings.nats else "",
            account=self.account,
            tls=self.tls,
            version=__version__,
            state=self.state,
            since=since,
            daemon_restarts=daemon_restarts,
            drain_timeout=self.settings.drain_timeout,
        )


class Saying(enum.StrEnum):
    """What a daemon reports of itself."""

    READY = "ready"
    FAILED = "failed"
    BEAT = "beat"
    """Its control actor has just answered."""
    STATUS = "status"
    RELOADING = "reloading"
    RELOADED = "reloaded"
    STOPPING = "stopping"
    """No more beats from here on."""


class DaemonReport(msgspec.Struct, frozen=True):
    """One line of JSON on stdout. `text` is a status for people; `monotonic_usec` says when a reload began."""

    error: ErrorInfo | None = None
    what: Saying = Saying.READY
    text: str = ""
    monotonic_usec: int = 0


class GuardianReport(msgspec.Struct, frozen=True):
    """One line of JSON to the `callboard up` that waits: where the daemon runs, or why it does not."""

    info: DaemonInfo | None = None
    error: ErrorInfo | None = None
