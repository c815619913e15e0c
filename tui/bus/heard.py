"""What was heard on the bus: kept as bytes, decoded when somebody looks at it or filters by it."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec

from ...runtime.errors import UsageError
from ...runtime.messages import UNDECODABLE
from ...schemas.base import Message

MOST_MESSAGES = 10_000
MOST_BYTES = 32 * 1024 * 1024
# What is shown of a message on one line.
LINE = 300


class CannotPublish(UsageError):
    """What is no message, or has nowhere to go."""

    code = "tui.publish"


@dataclass(slots=True)
class Heard:
    """One message. `number` counts from 1; `at` is this machine's time when it came."""

    number: int
    at: float
    subject: str
    data: bytes
    _content: Any = field(default=None, repr=False)

    @property
    def content(self) -> Any:
        """The message as plain values; bytes where it is none of ours."""
        if self._content is None:
            self._content = _decode(self.data)
        return self._content

    def forget(self) -> None:
        """It can be decoded again."""
        self._content = None

    @property
    def sender(self) -> str:
        content = self.content
        return str(content.get("sender") or "") if self.is_tapped and isinstance(content, dict) else ""

    @property
    def is_tapped(self) -> bool:
        """Whether it is a mirror of what an actor got."""
        return self.subject.startswith("tap.")

    @property
    def message(self) -> Any:
        """The message itself, out of the mirror's own."""
        content = self.content
        return content.get("message") if self.is_tapped and isinstance(content, dict) else content

    @property
    def tag(self) -> str:
        message = self.message
        if isinstance(message, dict):
            return str(message.get("type", ""))
        return "bytes" if isinstance(message, bytes) else type(message).__name__

    @property
    def line(self) -> str:
        """The message without its tag, on one line."""
        message = self.message
        if isinstance(message, dict):
            message = {key: value for key, value in message.items() if key != "type"}
            return _text(message)[:LINE] if message else ""
        return _text(message)[:LINE]

    @property
    def pretty(self) -> str:
        message = self.message
        if isinstance(message, bytes):
            return _text(message)
        return msgspec.json.format(msgspec.json.encode(message), indent=2).decode(errors="backslashreplace")

    @property
    def explained(self) -> str:
        """What is known of its type, and where it does not fit it."""
        known = message_types().get(self.tag)
        if known is None:
            return (
                "of a type that this program does not know" if isinstance(self.message, dict) else "no message of ours"
            )
        doc = (known.__doc__ or "").strip().partition("\n")[0]
        try:
            msgspec.convert(self.message, known, strict=False)
        except msgspec.ValidationError as error:
            return f"{known.__name__}, but it does not fit: {error}"
        return f"{known.__name__}: {doc}" if doc else known.__name__

    def fits(self, words: list[str]) -> bool:
        text = f"{self.subject} {self.tag} {_text(self.message)}".lower()
        return all(word in text for word in words)

    def target(self) -> str:
        """Where the same message would be sent again. Raises CannotPublish."""
        first, _, rest = self.subject.partition(".")
        if first in ("tap", "dead"):
            return f"actor.{rest}"
        if first == "topic":
            return self.subject
        raise CannotPublish(
            f"what is said on {self.subject} is the runtime's own",
            hint="messages of topic., tap. and dead. may be sent",
        )


class Log:
    """The last messages, bounded in number and in bytes. `dropped` counts those that had to go for new ones, `gaps` how
    often the connection was away, so that nobody knows what was said."""

    def __init__(self, most: int = MOST_MESSAGES, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: collections.deque[Heard] = collections.deque()
        self.total = 0
        self.bytes = 0
        self.dropped = 0
        self.gaps = 0
        self._gap_after = -1

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Heard]:
        return iter(self._kept)

    def take(self, subject: str, data: bytes) -> None:
        """The bus calls this for each message: it does as little as can be."""
        self.total += 1
        self._kept.append(Heard(self.total, time.time(), subject, data))
        self.bytes += len(data)
        while len(self._kept) > self._most or (self.bytes > self._most_bytes and len(self._kept) > 1):
            self.bytes -= len(self._kept.popleft().data)
            self.dropped += 1

    def missed(self) -> None:
        """The connection is away. It may be said more than once; before the first message nothing is missing."""
        if self.total and self._gap_after != self.total:
            self._gap_after = self.total
            self.gaps += 1

    def since(self, number: int) -> list[Heard]:
        """Those with a higher number that are still kept, oldest first."""
        new = min(self.total - number, len(self._kept))
        return [self._kept[place] for place in range(len(self._kept) - new, len(self._kept))]

    def clear(self) -> None:
        """Begin anew, with number 1."""
        self._kept.clear()
        self.total = self.bytes = self.dropped = self.gaps = 0
        self._gap_after = -1


def checked_json(text: str) -> bytes:
    """What may be published: a JSON object with a type. Raises CannotPublish."""
    try:
        message = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise CannotPublish(f"this is no JSON: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise CannotPublish("a message is a JSON object with a type", hint='{"type": "bench.add", "amount": 3}')
    known = message_types().get(message["type"])
    if known is not None:
        try:
            msgspec.convert(message, known, strict=False)
        except msgspec.ValidationError as error:
            raise CannotPublish(f"it does not fit {message['type']}: {error}") from error
    return msgspec.json.encode(message)


@cache
def message_types() -> dict[str, type[Message]]:
    """By tag. Imports every schema, so nobody asks before a person looks at a message."""
    from ...runtime.schema import own_messages

    return own_messages().by_tag


def _decode(data: bytes) -> Any:
    try:
        content = (msgspec.json if data[:1] == b"{" else msgspec.msgpack).decode(data)
    except UNDECODABLE:
        return data
    # Somebody's text may decode as something by chance.
    return content if isinstance(content, dict) else data


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    try:
        return msgspec.json.encode(value).decode(errors="backslashreplace")
    except (TypeError, ValueError):  # MessagePack may have keys that JSON cannot
        return repr(value)
