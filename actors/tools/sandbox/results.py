"""What a call in the sandbox gives back."""

from __future__ import annotations

import mimetypes
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GuestError:
    """An exception of the code: `traceback` begins at its first line, and ends with the message."""

    type: str
    message: str
    traceback: str


@dataclass(frozen=True)
class OutFile:
    """A file that the code left. `name` is relative, with `/`; `path` is a copy that lasts as the result does."""

    name: str
    path: Path
    size: int

    @property
    def mime(self) -> str:
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"

    def bytes(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True)
class Usage:
    """`cpu_s`, `peak_memory` (bytes) and `most_processes` (with threads): of all processes together, as looked at."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory: int = 0
    most_processes: int = 0


@dataclass(frozen=True)
class RunResult:
    """`value`: the text of a last expression's value, None where there was none. `exit_status`: of the command, or of
    code that ended its interpreter; 0 otherwise; negative for a signal. `left_out`: files that could not come back,
    with the reason. `session_ended`: the interpreter is gone, and with it the session's variables.

    The copies of files lie in `folder` until `release` or the sandbox's end.
    """

    stdout: str
    stderr: str
    value: str | None = None
    error: GuestError | None = None
    exit_status: int = 0
    files: tuple[OutFile, ...] = ()
    images: tuple[OutFile, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    session_ended: bool = False
    usage: Usage = Usage()
    folder: Path | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and self.exit_status == 0

    def release(self) -> None:
        """Delete the copies."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
