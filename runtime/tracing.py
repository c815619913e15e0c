"""Traces: which messages one request led to, where each was handled, how long that took, and what failed.

A trace begins where somebody asks for one (`client.trace()`, a `traceparent` in a JSON message) and follows the
messages from handler to handler, in the identifiers of W3C trace context (https://www.w3.org/TR/trace-context/). Who
carries none records none: an untraced message pays two comparisons. Finished spans stay in a bounded memory of their
node until somebody asks for them.
"""

from __future__ import annotations

import asyncio
import collections
import os
import re
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from ..schemas.base import Message
from ..schemas.trace import KeepSpans, Span, SpanKind, TraceSummary
from ..schemas.wire import Envelope, Op
from .context import current_place, enter_trace
from .errors import to_info
from .messages import UNDECODABLE, tag_of

if TYPE_CHECKING:
    from contextvars import Token

    from .cell import Cell
    from .context import Place
    from .deliveries import Delivery
    from .links import Links

# Of all traces together, and of one, so that a busy one does not push out the rest. A span is about 1 KiB.
MAX_SPANS = 8192
MAX_SPANS_OF_ONE = 2048
# What an error may say in a span.
MAX_ERROR_CHARS = 300
# A process that goes leaves its spans in messages of so many.
_SPANS_AT_ONCE = 500

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NOTHING = nullcontext()


class Trace:
    """A place in a trace: what happens now is a child of `span_id`.

    `sending` says that it is a message's and not yet its handler's. `at` is when it was made or came in here
    (`time.perf_counter`). An unsampled trace is passed on and recorded nowhere.
    """

    __slots__ = ("at", "sampled", "sending", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str, *, sampled: bool = True, sending: bool = False) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.sampled = sampled
        self.sending = sending
        self.at = time.perf_counter()

    @classmethod
    def parse(cls, traceparent: str) -> Trace | None:
        """None for what is no traceparent: a broken one must not cost the message that carries it."""
        found = _TRACEPARENT.fullmatch(traceparent)
        if found is None or found[1] == "0" * 32 or found[2] == "0" * 16 or traceparent[:2] == "ff":
            return None
        return cls(found[1], found[2], sampled=bool(int(found[3], 16) & 1))

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


class OpenSpan:
    """A span that has begun. As a context manager it is where the task is in its trace, and ends with the block."""

    __slots__ = ("_actor", "_began", "_kind", "_name", "_parent", "_started", "_token", "_tracer", "_waited", "trace")

    def __init__(
        self, tracer: Tracer, parent: Trace, kind: SpanKind, name: str, actor: str, *, parent_id: str | None = None
    ) -> None:
        now = time.perf_counter()
        sending = kind in (SpanKind.ASK, SpanKind.TELL, SpanKind.STREAM, SpanKind.PUBLISH)
        # An unsampled span is none, so what it leads to keeps the identifier of the last that is one.
        span_id = os.urandom(8).hex() if parent.sampled else parent.span_id
        self.trace = Trace(parent.trace_id, span_id, sampled=parent.sampled, sending=sending)
        self._tracer: Tracer | None = tracer if parent.sampled else None
        self._parent = parent.span_id if parent_id is None else parent_id
        self._kind = kind
        self._name = name
        self._actor = actor
        self._began = now
        self._started = time.time_ns()
        self._waited = now - parent.at if kind in (SpanKind.HANDLE, SpanKind.RECEIVE) else 0.0
        self._token: Token[Place | Cell] | None = None

    def __enter__(self) -> OpenSpan:
        self._token = enter_trace(self.trace)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        self.end(error)

    def leave(self) -> None:
        """The task goes on outside of the span, which is still open."""
        if self._token is not None:
            current_place.reset(self._token)
            self._token = None

    def end(self, error: BaseException | None = None) -> None:
        """Once; what comes after is not heard."""
        tracer, self._tracer = self._tracer, None
        if tracer is None:
            return
        code, message = _outcome(error)
        tracer.keep(
            (
                Span(
                    trace=self.trace.trace_id,
                    span=self.trace.span_id,
                    parent=self._parent,
                    kind=self._kind,
                    name=self._name,
                    actor=self._actor,
                    node=tracer.node,
                    started=self._started,
                    took=int((time.perf_counter() - self._began) * 1e9),
                    waited=int(self._waited * 1e9),
                    error=code,
                    message=message[:MAX_ERROR_CHARS],
                ),
            )
        )


def _outcome(error: BaseException | None) -> tuple[str, str]:
    if error is None:
        return "", ""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled", "it was given up"
    info = to_info(error)
    return info.code, info.message


class Tracer:
    """Makes the spans of one node and keeps the last of them: those of the newest traces, up to `MAX_SPANS`."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._traces: collections.OrderedDict[str, dict[str, Span]] = collections.OrderedDict()
        self._dropped: collections.Counter[str] = collections.Counter()
        self._num_spans = 0
        self._handed: set[str] = set()

    # Making them

    def begin(self, name: str) -> OpenSpan:
        """The first span of a new trace, or a span within the present one."""
        parent = current_place.get().trace
        if parent is not None:
            return OpenSpan(self, parent, SpanKind.ROOT, name, "")
        return OpenSpan(self, Trace(os.urandom(16).hex(), ""), SpanKind.ROOT, name, "", parent_id="")

    def sending(self, trace: Trace, kind: SpanKind, message: Message, to: str) -> OpenSpan:
        """From the sending of a message to its answer, or until it is on its way where there is none."""
        return OpenSpan(self, trace, kind, tag_of(message), to)

    def handling(self, delivery: Delivery, address: str) -> AbstractContextManager[Any]:
        """The handling of a message that carries a trace; nothing for any other."""
        if delivery.trace is None:
            return _NOTHING
        return OpenSpan(self, delivery.trace, SpanKind.HANDLE, tag_of(delivery.message), address)

    def receiving(self, trace: Trace, subject: str, pattern: str) -> OpenSpan:
        """What a listener does with a message that it took."""
        return OpenSpan(self, trace, SpanKind.RECEIVE, subject, pattern)

    # Keeping them

    def keep(self, spans: Iterable[Span]) -> None:
        for span in spans:
            kept = self._traces.setdefault(span.trace, {})
            self._traces.move_to_end(span.trace)
            if span.span in kept:
                continue
            if len(kept) >= MAX_SPANS_OF_ONE:
                self._dropped[span.trace] += 1
                continue
            kept[span.span] = span
            self._num_spans += 1
        while self._num_spans > MAX_SPANS and len(self._traces) > 1:
            oldest, gone = self._traces.popitem(last=False)
            self._num_spans -= len(gone)
            self._dropped.pop(oldest, None)
            self._handed.difference_update(gone)

    def spans(self, trace: str) -> tuple[tuple[Span, ...], int]:
        """Those of a trace by the beginning of its identifier, and how many more there were."""
        found = [known for known in self._traces if known.startswith(trace)]
        return (
            tuple(span for known in found for span in self._traces[known].values()),
            sum(self._dropped[known] for known in found),
        )

    def summaries(self, limit: int) -> tuple[TraceSummary, ...]:
        newest = list(reversed(self._traces.items()))[: max(0, limit)]
        return tuple(
            TraceSummary(
                trace,
                min(spans.values(), key=lambda span: (span.parent != "", span.started)),
                len(spans),
                sum(bool(span.error) for span in spans.values()),
            )
            for trace, spans in newest
            if spans
        )

    def hand_over(self, links: Links, to: str) -> None:
        """Leave what others have not got yet with another node's control actor. Nobody says whether it took them."""
        left = [span for spans in self._traces.values() for span in spans.values() if span.span not in self._handed]
        self._handed.update(span.span for span in left)
        for at in range(0, len(left), _SPANS_AT_ONCE):
            part = KeepSpans(tuple(left[at : at + _SPANS_AT_ONCE]))
            links.bus.send(f"actor.{to}", msgspec.msgpack.encode(Envelope(Op.TELL, part, sender=self.node)))


def traceparent() -> str:
    """That of what the present task sends; empty where it is untraced."""
    trace = current_place.get().trace
    return "" if trace is None else str(trace)


# Messages without an envelope: published ones, and those of programs that are none of ours


class _Marked(msgspec.Struct):
    traceparent: str = ""


_KEY = b"traceparent"
_json_mark = msgspec.json.Decoder(_Marked)
_msgpack_mark = msgspec.msgpack.Decoder(_Marked)


def marked(data: bytes, trace: Trace | None) -> bytes:
    """The encoded message with the field `traceparent`, which who does not look for it does not see.

    What has one keeps it, and what is no message with fields stays as it is.
    """
    if trace is None or _KEY in data:
        return data
    if data[:1] == b"{":
        rest = data[1:].lstrip()
        return b'{"traceparent":"%s"%s%s' % (str(trace).encode(), b"" if rest[:1] == b"}" else b",", rest)
    field = msgspec.msgpack.encode("traceparent") + msgspec.msgpack.encode(str(trace))
    head = data[0] if data else 0
    if 0x80 <= head < 0x8F:  # a map of up to 14 fields has their number in its first byte
        return bytes((head + 1,)) + data[1:] + field
    if head == 0x8F:
        return b"\xde\x00\x10" + data[1:] + field
    if head == 0xDE and data[1:3] != b"\xff\xff":
        return b"\xde" + (int.from_bytes(data[1:3], "big") + 1).to_bytes(2, "big") + data[3:] + field
    return data


def mark_of(data: bytes) -> Trace | None:
    """The trace that a message without an envelope carries."""
    if _KEY not in data:
        return None
    try:
        found = (_json_mark if data[:1] == b"{" else _msgpack_mark).decode(data)
    except UNDECODABLE:
        return None  # it says so of something else, or not in words: no reason to refuse the message
    return Trace.parse(found.traceparent)
