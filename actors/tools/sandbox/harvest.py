"""What is read out of a sandbox after a call, while everything in it stands still: results, or a session's snapshot."""

from __future__ import annotations

from pathlib import Path

from . import scratch
from .config import Limits
from .errors import SandboxError
from .guest import Guest, Outcome
from .results import RunResult
from .snapshot import SessionSnapshot

# Of values that are carried over, with what msgpack and names add.
_SNAPSHOT_ROOM = 1 << 20


def result_of(
    guest: Guest, outcome: Outcome, before: dict[str, scratch.Stamp], folder: Path, limits: Limits
) -> RunResult:
    bounds = scratch.Bounds(limits.result_bytes, limits.result_files, limits.file_bytes)
    answer = outcome.answer
    images = scratch.collect_images(
        guest.scratch, min(answer.images, limits.result_files) if answer else 0, folder, bounds
    )
    files = scratch.collect(guest.scratch, before, folder, bounds, limits.scratch_files)
    exit_status = outcome.status
    if answer is not None and answer.exit is not None:
        exit_status = answer.exit
    return RunResult(
        stdout=outcome.stdout,
        stderr=outcome.stderr,
        value=answer.value[: limits.output_bytes] if answer and answer.value is not None else None,
        error=answer.guest_error() if answer else None,
        exit_status=exit_status,
        files=tuple(files.files),
        images=tuple(images.files),
        left_out=(*images.left_out, *files.left_out),
        session_ended=outcome.ended,
        usage=outcome.usage,
        folder=folder if folder.exists() else None,
    )


def snapshot_of(guest: Guest, outcome: Outcome, limit: int, limits: Limits) -> SessionSnapshot:
    answer = outcome.answer
    assert answer is not None
    lost = dict(answer.lost)
    try:
        state = scratch.read(guest.scratch, "out/state", limit)
    except (OSError, ValueError) as error:
        raise SandboxError(f"the session's state cannot be read: {error}") from error
    try:
        shell = scratch.read(guest.scratch, "out/shell-state", _SNAPSHOT_ROOM)
    except (OSError, ValueError):
        shell = b""
    files: list[tuple[str, bytes]] = []
    room = limit
    for name in scratch.stamps(guest.scratch, limits.scratch_files):
        try:
            data = scratch.read(guest.scratch, f"work/{name}", room)
            name.encode()
        except (OSError, ValueError) as error:
            lost[ascii(name)] = str(error)
        else:
            files.append((name, data))
            room -= len(data)
    return SessionSnapshot(state, tuple(files), shell, tuple(answer.kept), tuple(lost.items()))
