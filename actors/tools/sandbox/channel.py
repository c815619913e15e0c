"""The host's end of the sockets into a sandbox: frames out, frames and descriptors in, all without blocking."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

import anyio

from .frames import MAX_FRAME, Unpacker, pack

_READ = 1 << 16
_MOST_DESCRIPTORS = 4


class Channel:
    """One socket. `descriptors`: whether the other side may send some; those of a guest are never taken."""

    def __init__(self, connection: socket.socket, *, descriptors: bool, limit: int = MAX_FRAME) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._takes_descriptors = descriptors
        self._unpacker = Unpacker(limit)
        self._frames: deque[bytes] = deque()
        self.descriptors: deque[int] = deque()

    async def send(self, value: Any, descriptors: Sequence[int] = ()) -> None:
        """Raises OSError when the other side is gone. The descriptors stay the caller's."""
        data = memoryview(pack(value))
        while data:
            try:
                if descriptors:
                    sent = socket.send_fds(self._socket, [data], descriptors)
                    descriptors = ()
                else:
                    sent = self._socket.send(data)
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            else:
                data = data[sent:]

    async def receive(self) -> bytes:
        """The next frame. Raises EOFError when the other side is gone, BadFrame when it breaks the form."""
        while not self._frames:
            try:
                data = self._read()
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._frames.extend(self._unpacker.feed(data))
        return self._frames.popleft()

    def _read(self) -> bytes:
        if not self._takes_descriptors:
            return self._socket.recv(_READ)  # the kernel drops descriptors that come along
        data, descriptors, _, _ = socket.recv_fds(self._socket, _READ, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        self.descriptors.extend(descriptors)
        return data

    def close(self) -> None:
        self._socket.close()
        while self.descriptors:
            os.close(self.descriptors.popleft())
