"""A job's events in its file, a JSON object a line: written by rank 0, cut back when a group begins anew, followed.

Rank 0 writes them itself, before the checkpoint that they lead to: so a checkpoint that is there has all its events,
whatever was killed. A group that goes on from a checkpoint takes later steps again; who follows hears each step once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ...runtime.files import write_private
from ...runtime.messages import UNDECODABLE
from ...schemas.train import TrainCheckpointed, TrainEvent, TrainNote, TrainProgress, TrainSampled

_decoder = msgspec.json.Decoder(TrainEvent)
_encode = msgspec.json.Encoder().encode

# What is read from a file's end to find its last step: far more than a step's lines.
_TAIL_BYTES = 1 << 16


class EventWriter:
    """Appends. What was written is with the kernel at once, and on the disk after a checkpoint's event."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, event: TrainEvent) -> None:
        """Raises OSError, also where only a part went in: the disk is full."""
        line = _encode(event) + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if isinstance(event, TrainCheckpointed):
            os.fsync(self._file)

    def close(self) -> None:
        os.fsync(self._file)
        os.close(self._file)


def cut(path: Path, last: TrainCheckpointed | None, notes: list[TrainNote]) -> None:
    """Leave what happened up to a checkpoint (None: the notes of earlier beginnings), then `notes`.

    The checkpoint's own event is added where its writer was killed before it had told. Only for who has the job's
    lock; the file is replaced as a whole.
    """
    if last is None:
        kept = [event for event in read_all(path) if event.step == 0 and isinstance(event, TrainNote)]
    else:
        kept = [event for event in read_all(path) if event.step <= last.step]
        if not any(isinstance(event, TrainCheckpointed) and event.step == last.step for event in kept):
            kept.append(last)
    write_private(path, b"".join(_encode(event) + b"\n" for event in (*kept, *notes)))


def read_all(path: Path) -> Iterator[TrainEvent]:
    try:
        with path.open("rb") as file:
            for line in file:
                event = _parse(line)
                if event is not None:
                    yield event
    except FileNotFoundError:
        return


def last_progress(path: Path) -> TrainProgress | None:
    """The latest step in the file, found from its end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        event = _parse(line)
        if isinstance(event, TrainProgress):
            return event
    return None


class Once:
    """Lets each event of a step through once, however often the step was taken."""

    def __init__(self, after: int = -1) -> None:
        """`after`: hold back what happened up to this step."""
        self._floor = after + 1
        self._seen: set[tuple[int, str, str]] = set()

    def is_new(self, event: TrainEvent) -> bool:
        key = _key(event)
        if event.step < self._floor or key in self._seen:
            return False
        self._seen.add(key)
        if isinstance(event, TrainCheckpointed) and event.step > self._floor:
            # Nothing before a checkpoint is done again.
            self._floor = event.step
            self._seen = {key for key in self._seen if key[0] >= event.step}
        return True


class EventReader:
    """Reads on from where it was. Each event comes once: see `Once`."""

    def __init__(self, path: Path, after: int = -1) -> None:
        self._path = path
        self._once = Once(after)
        self._file: int | None = None
        self._inode = 0
        self._rest = b""

    def read(self) -> list[TrainEvent]:
        """What is new. Blocks for as long as the disk takes."""
        events = self._read_open()
        try:
            inode = os.stat(self._path).st_ino
        except FileNotFoundError:
            return events
        if inode != self._inode:  # it was cut back, and there is a new file under its name
            self.close()
            self._file, self._inode = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC), inode
            events += self._read_open()
        return events

    def _read_open(self) -> list[TrainEvent]:
        events: list[TrainEvent] = []
        while self._file is not None and (data := os.read(self._file, 1 << 20)):
            *lines, self._rest = (self._rest + data).split(b"\n")
            parsed = (_parse(line) for line in lines)
            events += [event for event in parsed if event is not None and self._once.is_new(event)]
        return events

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._rest = None, b""


def _key(event: TrainEvent) -> tuple[int, str, str]:
    match event:
        case TrainSampled(prompt=prompt):
            return event.step, "sampled", prompt
        case TrainNote(text=text):
            return event.step, "note", text
        case _:
            return event.step, type(event).__name__, ""


def _parse(line: bytes) -> TrainEvent | None:
    """None for what is no whole event: the line that its writer was killed over."""
    try:
        return _decoder.decode(line) if line.strip() else None
    except UNDECODABLE:
        return None
