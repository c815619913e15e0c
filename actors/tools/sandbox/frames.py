"""How the parts of a sandbox speak: a length in four bytes, then that many bytes of JSON.

The host reads frames that hostile code may have written, so a length over the bound ends the conversation before
anything of that size is read. Only the standard library: both sides of the sandbox use this.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

LENGTH = struct.Struct(">I")
# Code, input and answers are text for a model; what is bigger goes through files.
MAX_FRAME = 4 << 20


class BadFrame(Exception):
    """The other side does not keep to the form."""


def pack(value: Any) -> bytes:
    body = json.dumps(value).encode()
    if len(body) > MAX_FRAME:
        raise BadFrame(f"{len(body)} bytes; at most {MAX_FRAME} go through")
    return LENGTH.pack(len(body)) + body


class Unpacker:
    """Bytes in as they come, whole frames out as bytes. Holds at most one frame and what came with it."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are complete now. Raises BadFrame."""
        self._buffer += data
        found: list[bytes] = []
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > self._limit:
                raise BadFrame(f"a frame says that it has {length} bytes; at most {self._limit} go through")
            end = LENGTH.size + length
            if len(self._buffer) < end:
                break
            found.append(bytes(self._buffer[LENGTH.size : end]))
            del self._buffer[:end]
        return found


def receive(connection: socket.socket) -> Any:
    """The next frame of a peer that is trusted (blocking). EOFError when it is gone."""
    (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    if length > MAX_FRAME:
        raise BadFrame(f"a frame of {length} bytes")
    return json.loads(_exactly(connection, length))


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
