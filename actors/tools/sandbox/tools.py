"""The tools `python` and `shell`: code and commands of a model, run in the sandbox and nowhere else.

Together they are the set `sandbox`; a session of one is the session of the other, with the same files.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from ....runtime.folders import Paths
from ..context import ToolContext
from ..outcome import Reply
from ..tool import Tool
from ..values import File, Image
from .config import Limits, SandboxConfig
from .errors import SandboxKilled
from .kept import Sessions, SessionsHere, SessionsWithCompany
from .parts import Part
from .results import OutFile, RunResult
from .workbench import Lost, Workbench

Files = tuple[File, ...]

# Beside the wall time of the code: making the sandbox, copying files, keeping the session.
_AROUND_S = 30.0
_CONCURRENCY = 4
_DAY_S = 86400.0
# Files of a session count like its values, and msgpack adds little.
_SNAPSHOT_PARTS = 3
# What a model is told of the output of code that was ended.
_TAIL = 1500


class SandboxOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Table `[tools.sandbox]`. As in SandboxConfig; `keeper`: the actor that keeps sessions for all nodes, under the
    name `owner`; without one, `sessions` is the folder that keeps them, "" for one in the state folder; `keep_sessions`
    false: they end with the process. What nobody uses for `forget_days` is deleted."""

    limits: Limits = Limits()
    read: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    accept: tuple[Part, ...] = ()
    max_sessions: int = 16
    sessions: str = ""
    keep_sessions: bool = True
    forget_days: float = 30.0
    keeper: str = ""
    owner: str = "sandbox"

    def config(self) -> SandboxConfig:
        return SandboxConfig(self.limits, self.read, self.preload, (), self.accept, self.max_sessions)

    def kept(self) -> Sessions | None:
        if not self.keep_sessions:
            return None
        limit = _SNAPSHOT_PARTS * self.limits.snapshot_bytes
        if self.keeper:
            return SessionsWithCompany(self.keeper, self.owner, limit)
        folder = Path(self.sessions).expanduser() if self.sessions else Paths.find().state / "sandbox-sessions"
        return SessionsHere(folder, limit, self.forget_days * _DAY_S)


class PythonResult(msgspec.Struct, omit_defaults=True):
    """What Python code came to. `value`: of a last expression. `error`: the traceback of what it raised."""

    stdout: str = ""
    stderr: str = ""
    value: str | None = None
    error: str | None = None
    exit_status: int = 0
    images: list[Image] = []
    files: list[File] = []
    notes: list[str] = []


class ShellResult(msgspec.Struct, omit_defaults=True):
    """What a command came to. `exit_status`: 128 and more for a signal."""

    exit_status: int
    stdout: str = ""
    stderr: str = ""
    files: list[File] = []
    notes: list[str] = []


class _InSandbox(Tool):
    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench

    async def setup(self) -> None:
        await self._workbench.open()

    async def close(self) -> None:
        await self._workbench.close()


class Python(_InSandbox, open_world=False, concurrency=_CONCURRENCY):
    """Run Python code and return its output, the value of its last expression, and the files and plots that it makes.

    There is no network. Files are written to the current folder and come back, as do matplotlib figures and PIL images
    that the code shows or ends with. numpy, pandas and the like are there where they are installed.
    """

    async def run(self, code: str, context: ToolContext, session: str = "", files: Files = ()) -> PythonResult:
        """
        Args:
            code: Python code, run as a notebook runs a cell.
            session: Names an interpreter that keeps variables and files between calls; leave it empty for a fresh one.
            files: Files that the code finds in the current folder, by their names.
        """
        name = session_name(context.session, session)
        try:
            result, lost = await self._workbench.python(code, name, given(files), context.ask_async)
        except SandboxKilled as killed:
            raise _told(killed) from killed
        images, left = _kept(result, context)
        error = result.error.traceback if result.error else None
        answer = PythonResult(
            result.stdout, result.stderr, result.value, error, result.exit_status, images, left, notes(result, lost)
        )
        return Reply(answer, _text(result, answer.notes))  # type: ignore[return-value]


class Shell(_InSandbox, open_world=False, concurrency=_CONCURRENCY):
    """Run a shell command and return its output and exit status. There is no network, and no file system but its own.

    Files that it writes to the current folder come back.
    """

    async def run(self, command: str, context: ToolContext, session: str = "", files: Files = ()) -> ShellResult:
        """
        Args:
            command: One or more commands for bash.
            session: Names a session that keeps variables, the folder and files; leave it empty for a fresh one.
            files: Files that the command finds in the current folder, by their names.
        """
        name = session_name(context.session, session)
        try:
            result, lost = await self._workbench.shell(command, name, given(files), context.ask_async)
        except SandboxKilled as killed:
            raise _told(killed) from killed
        _, left = _kept(result, context)
        answer = ShellResult(result.exit_status, result.stdout, result.stderr, left, notes(result, lost))
        return Reply(answer, _text(result, answer.notes))  # type: ignore[return-value]


def tools(options: SandboxOptions) -> list[Tool]:
    """The set. Nothing is started before the first call."""
    workbench = Workbench(options.config(), options.kept())
    timeout = options.limits.wall_s + _AROUND_S
    return [Python(workbench).named(timeout=timeout), Shell(workbench).named(timeout=timeout)]


def session_name(caller: str, wanted: str) -> str:
    """The caller's session, or one of several that it names: two callers that name theirs alike share nothing."""
    return f"{caller}/{wanted}" if caller and wanted else caller or wanted


def given(files: Files) -> dict[str, Path]:
    """What is put into the work folder, by names that are plain file names."""
    return {file.file_name: file.path for file in files}


def _kept(result: RunResult, context: ToolContext) -> tuple[list[Image], list[File]]:
    """The results' files where they last as long as the call's answer needs them."""
    if result.folder is None:
        return [], []
    folder = context.scratch / "results"
    shutil.move(result.folder, folder)

    def moved(file: OutFile) -> Path:
        assert result.folder is not None
        return folder / file.path.relative_to(result.folder)

    images = [Image.from_path(moved(image), "image/png", image.name) for image in result.images]
    return images, [File.from_path(moved(file), file.mime, file.name) for file in result.files]


def notes(result: RunResult, lost: Lost) -> list[str]:
    """What a caller should know beside the results."""
    found = [f"{name} did not come back: {why}" for name, why in result.left_out]
    found += [f"of the session, {name} is lost: {why}" for name, why in lost]
    if result.session_ended:
        found.append("the interpreter has ended")
    return found


def _text(result: RunResult, extra: list[str]) -> str:
    """The results as a model reads them best: as a terminal would show them."""
    parts = [result.stdout.rstrip("\n"), result.stderr.rstrip("\n"), result.value or ""]
    if result.error is not None:
        parts.append(result.error.traceback.rstrip("\n"))
    if result.exit_status != 0:
        parts.append(f"(exit status {result.exit_status})")
    if made := [file.name for file in (*result.images, *result.files)]:
        parts.append(f"(made: {', '.join(made)})")
    parts += [f"({note})" for note in extra]
    return "\n".join(part for part in parts if part) or "(no output)"


def _told(killed: SandboxKilled) -> SandboxKilled:
    """With the end of what was printed, which a model needs to know how far its code came."""
    printed = (killed.stdout + killed.stderr)[-_TAIL:]
    told = SandboxKilled(f"{killed}; it had printed: {printed}" if printed else str(killed), hint=killed.hint)
    told.reason, told.stdout, told.stderr = killed.reason, killed.stdout, killed.stderr
    return told
