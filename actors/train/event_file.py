"""TensorBoard's event files: scalars and texts, in records with checksums, without TensorBoard or protobuf.

A record (TensorFlow's TFRecord):

    length            uint64, little-endian
    masked CRC-32C    uint32, of the length
    data              a message `Event` (tensorboard/compat/proto/event.proto)
    masked CRC-32C    uint32, of the data

What is written of the messages, by their fields' numbers:

    Event       1 wall_time: double   2 step: int64   3 file_version: string   5 summary   7 session_log
    Summary     1 value, repeated
    Value       1 tag: string   2 simple_value: float   8 tensor   9 metadata
    SessionLog  1 status: 1 for START
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path

# CRC-32C: the reversed polynomial of Castagnoli, as RFC 3720 takes it.
_POLYNOMIAL = 0x82F63B78
_MASK = 0xA282EAD8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DT_STRING = 7
_FLOAT_MAX = 3.4028234663852886e38


def _table() -> tuple[int, ...]:
    entries: list[int] = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (_POLYNOMIAL if entry & 1 else 0)
        entries.append(entry)
    return tuple(entries)


_TABLE = _table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    """Turned by 15 bits and moved by a constant, so that a checksum over checksums says something."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def event(wall_time: float, step: int, *fields: bytes) -> bytes:
    return _field(1, _FIXED64, struct.pack("<d", wall_time)) + _field(2, _VARINT, _varint(step)) + b"".join(fields)


def file_version() -> bytes:
    return _nested(3, b"brain.Event:2")


def session_start() -> bytes:
    """Readers drop what an earlier file of the folder says of this step and later ones."""
    return _nested(7, _field(1, _VARINT, _varint(1)))


def scalars(values: Iterable[tuple[str, float]]) -> bytes:
    """A summary of (tag, value); a value that float32 does not reach is infinite in it."""
    parts = (_nested(1, tag.encode()) + _field(2, _FIXED32, _float32(value)) for tag, value in values)
    return _nested(5, b"".join(_nested(1, part) for part in parts))


def text(tag: str, content: str) -> bytes:
    """A summary for the text plugin, which shows Markdown."""
    shape = _nested(2, _field(1, _VARINT, _varint(1)))  # one dimension, of size 1
    tensor = _field(1, _VARINT, _varint(_DT_STRING)) + _nested(2, shape) + _nested(8, content.encode())
    metadata = _nested(1, _nested(1, b"text"))
    return _nested(5, _nested(1, _nested(1, tag.encode()) + _nested(8, tensor) + _nested(9, metadata)))


def _float32(value: float) -> bytes:
    if math.isfinite(value) and abs(value) > _FLOAT_MAX:
        value = math.copysign(math.inf, value)
    return struct.pack("<f", value)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _field(number: int, wire_type: int, content: bytes) -> bytes:
    return _varint(number << 3 | wire_type) + content


def _nested(number: int, content: bytes) -> bytes:
    return _field(number, _BYTES, _varint(len(content)) + content)


class EventFile:
    """A new file in a folder that may hold those of earlier processes; readers take them in the order of their names.

    What was written is with the kernel at once: a process that is killed leaves whole records.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self._file = _create(folder)
        self._length = 0
        self.write(0, file_version())
        self.write(first_step, session_start())

    def write(self, step: int, *fields: bytes) -> None:
        """Raises OSError, with the file as it was before: half a record would hide those after it."""
        whole = record(event(time.time(), step, *fields))
        try:
            written = os.write(self._file, whole)
            if written != len(whole):
                os.write(self._file, whole[written:])  # says why
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._length)
            raise
        self._length += len(whole)

    def close(self) -> None:
        os.close(self._file)


def _create(folder: Path) -> tuple[Path, int]:
    """Named after the second, and within it in order."""
    started, host = int(time.time()), socket.gethostname()
    number = 0
    while True:
        path = folder / f"events.out.tfevents.{started:010}.{number:03}.{host}.{os.getpid()}"
        # Another process may have had the number, with another name at its end.
        if not list(folder.glob(f"events.out.tfevents.{started:010}.{number:03}.*")):
            with contextlib.suppress(FileExistsError):
                return path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        number += 1
