"""What can go wrong with a sandbox itself; what goes wrong in the code that it runs is a result.

SandboxError          tool.sandbox
├── SandboxLacks      tool.sandbox.lacks    the kernel has not what the sandbox stands on
├── SandboxKilled     tool.sandbox.killed   a limit was passed, and all processes were ended
│   └── NeverBegan                          they were ended from outside before any of the code ran
├── SnapshotRefused   tool.sandbox.snapshot what was to be restored is no snapshot, or too big
├── SessionMoved      tool.sandbox.session_moved another owner has written the session that is kept for both
└── SessionsAway      tool.sandbox.sessions_away whoever keeps sessions does not answer
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from ..errors import ToolError
from .parts import WHAT_FOR, Kernel, Part


class SandboxError(ToolError):
    code = "tool.sandbox"


class SandboxLacks(SandboxError):
    """`parts`: what is lacking and was not accepted."""

    code = "tool.sandbox.lacks"
    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, parts: Iterable[Part], kernel: Kernel) -> SandboxLacks:
        lacking = tuple(parts)
        if Part.LINUX in lacking:
            error = cls("the code sandbox needs Linux", hint="run the tool on a node with Linux: `--on os=linux`")
        else:
            listed = "; ".join(_described(part, kernel) for part in lacking)
            names = ", ".join(f'"{part}"' for part in lacking)
            error = cls(
                f"the sandbox lacks what holds code in: {listed}",
                hint=f"have them switched on, or accept less: accept = [{names}] (docs/sandbox.md tells the cost)",
            )
        error.parts = lacking
        return error


def _described(part: Part, kernel: Kernel) -> str:
    reason = kernel.reason(part)
    return f"{part} ({WHAT_FOR[part]}{': ' + reason if reason else ''})"


class SandboxKilled(SandboxError):
    """`reason`: a name below. `stdout`, `stderr`: what was written until then. A session's variables are gone."""

    code = "tool.sandbox.killed"
    reason: str = ""
    stdout: str = ""
    stderr: str = ""

    @classmethod
    def of(cls, reason: str, bound: str = "", stdout: str = "", stderr: str = "") -> Self:
        what, hint = _REASONS.get(reason, (reason, ""))
        error = cls(f"the code was ended: {what}{f' ({bound})' if bound else ''}", hint=hint)
        error.reason, error.stdout, error.stderr = reason, stdout, stderr
        return error


class NeverBegan(SandboxKilled):
    """None of the code has run, so that a new sandbox can be given all of it."""


_REASONS = {
    "wall_time": ("it ran for too long", "do less in one call, or work in steps within a session"),
    "cpu_time": ("it used too much processor time", "do less in one call, or use a faster method"),
    "memory": ("its processes held too much memory", "work on the data in pieces"),
    "processes": ("it started too many processes", "use fewer processes and threads"),
    "scratch": ("it filled the scratch folder", "delete files that are done with"),
    "output": ("it printed too much", "print a summary, or write a file"),
    "protocol": ("it broke the sandbox's own conversation", "leave descriptor 3 alone"),
    "gone": ("its process was ended from outside", "call again: a session that is kept is brought back"),
    "host": ("its warden did not answer", ""),
}


class SnapshotRefused(SandboxError):
    code = "tool.sandbox.snapshot"


class SessionMoved(SandboxError):
    code = "tool.sandbox.session_moved"
    default_hint = "call again: the session is brought back as the other owner left it"


class SessionsAway(SandboxError):
    code = "tool.sandbox.sessions_away"
    default_hint = "call without a session, or again in a moment"
