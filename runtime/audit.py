"""Who had what done: spawns, stops and changes of credentials, a line of JSON each, only ever added to.

`by` is who asked. For credentials it is proven: by this machine's user (`user:NAME`), or by a subject that only one
user may publish on (`token:...`, `node:...`). For spawns and stops it is what the sender says of itself; that it holds
credentials with the role node is proven, which one of them is not.
"""

from __future__ import annotations

import getpass
import os
import time
from pathlib import Path

import msgspec

from .files import private_folder
from .folders import Paths


class AuditLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. `time` is UTC; `proven` says whether `by` is known or only claimed."""

    time: str
    action: str
    what: str
    by: str
    proven: bool
    detail: str = ""
    outcome: str = "done"


class Audit:
    """Appends to `audit.log` among a state folder's logs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, paths: Paths) -> Audit:
        return cls(paths.logs / "audit.log")

    def record(self, action: str, what: str, *, by: str, proven: bool, detail: str = "", outcome: str = "done") -> None:
        """On the disk when it returns, in one write, so that lines of several processes stay whole."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = AuditLine(time=stamp, action=action, what=what, by=by, proven=proven, detail=detail, outcome=outcome)
        private_folder(self.path.parent)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(line) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def this_person() -> str:
    """The user of this machine who runs this process."""
    try:
        return f"user:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's number without a name
        return f"user:{os.getuid()}"
