"""Server-sent events (WHATWG HTML, section 9.2) out of bytes as they come: lines, characters and events may be split
anywhere."""

from __future__ import annotations

import codecs
from typing import NamedTuple

from .errors import UpstreamGarbled

# More than any piece of an answer is; a server that never ends its line must not fill our memory.
MAX_EVENT_BYTES = 16 << 20


class Event(NamedTuple):
    name: str
    data: str


class EventDecoder:
    """`feed` takes bytes and gives the events that they complete. Raises UpstreamGarbled for what is no UTF-8, or an
    event without end."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("strict")
        self._line: list[str] = []
        self._after_cr = False
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Event]:
        try:
            text = self._decoder.decode(data)
        except UnicodeDecodeError as error:
            raise UpstreamGarbled(f"the stream is no UTF-8: {error.reason}") from error
        self._size += len(data)
        if self._size > MAX_EVENT_BYTES:
            raise UpstreamGarbled(f"an event of the stream is longer than {MAX_EVENT_BYTES >> 20} MiB")
        if self._after_cr and text:
            # One line end, whose halves came in two pieces.
            text = text.removeprefix("\n")
            self._after_cr = False
        self._after_cr = self._after_cr or text.endswith("\r")
        events: list[Event] = []
        # Not `splitlines`, which also splits at characters that are data here.
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines[:-1]:
            self._line.append(line)
            self._take("".join(self._line), events)
            self._line.clear()
        if lines[-1]:
            self._line.append(lines[-1])
        return events

    def _take(self, line: str, events: list[Event]) -> None:
        if not line:
            if self._data:
                events.append(Event(self._name, "\n".join(self._data)))
            self._name, self._size = "", 0
            self._data = []
            return
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
