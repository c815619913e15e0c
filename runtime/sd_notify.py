"""What a service manager is told: ready, status, alive, reloading, stopping. Nothing where none listens.

The protocol is sd_notify(3): lines of `NAME=value` in one datagram to the Unix socket that `NOTIFY_SOCKET` names.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from .daemon_orders import DaemonReport, Saying
from .log import log

# A manager that takes nothing for so long must not hold up the event loop any longer.
_PATIENCE_S = 1.0

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """The other end of the socket. Telling it something never fails: the daemon can do without."""

    def __init__(self, address: str, watchdog_s: float = 0.0) -> None:
        self.watchdog_s = watchdog_s
        """It restarts a service that says nothing for so long; 0: it does not watch."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address.startswith(("/", "@")) else None
        if self._socket is not None:
            self._socket.settimeout(_PATIENCE_S)
        elif address:
            log.warning("NOTIFY_SOCKET names %s, which is no Unix socket: nothing is reported there", address)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
        """As the environment says, whose variables are removed: they are for this process, and not for those that it
        starts."""
        address, usec, pid = (environment.pop(name, "") for name in _VARIABLES)
        meant = not pid or pid == str(os.getpid())
        return cls(address, int(usec) / 1e6 if usec.isdigit() and meant else 0.0)

    def tell(self, **fields: str | int) -> None:
        if self._socket is None:
            return
        text = "\n".join(f"{name}={str(value).replace(os.linesep, ' ')}" for name, value in fields.items())
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError as error:
            log.warning("the service manager could not be told %s: %s", ", ".join(fields), error)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def relay(manager: ServiceManager, report: DaemonReport, *, restarts: int = 0) -> None:
    """Tells the manager what a daemon reports. `restarts` is how often the daemon was started again so far."""
    again = f" (started again {restarts} times)" if restarts else ""
    match report.what:
        case Saying.READY:
            # The pid, since `callboard up --detach` is not the process that stays.
            manager.tell(READY=1, MAINPID=os.getpid(), STATUS=f"{report.text}{again}")
        case Saying.BEAT:
            manager.tell(WATCHDOG=1)
        case Saying.STATUS:
            manager.tell(STATUS=f"{report.text}{again}")
        case Saying.RELOADING:
            manager.tell(RELOADING=1, MONOTONIC_USEC=report.monotonic_usec, STATUS=report.text)
        case Saying.RELOADED:
            manager.tell(READY=1, STATUS=f"{report.text}{again}")
        case Saying.STOPPING | Saying.FAILED:
            pass  # of the whole service only its owner knows


def for_successor(environment: MutableMapping[str, str]) -> None:
    """Change the environment for a process that is to become the service in this one's place."""
    if environment.get("WATCHDOG_PID") == str(os.getpid()):
        del environment["WATCHDOG_PID"]
