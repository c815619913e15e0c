"""The spans of a traced request, and how a node is asked for those that it keeps."""

from __future__ import annotations

import enum

import msgspec

from .base import Message, Request


class SpanKind(enum.StrEnum):
    """What a span is about. A sending and the handling that it causes are a span each, parent and child."""

    ROOT = "root"
    ASK = "ask"
    TELL = "tell"
    STREAM = "stream"
    PUBLISH = "publish"
    HANDLE = "handle"
    RECEIVE = "receive"


class Span(msgspec.Struct, frozen=True):
    """One step of a traced request, finished.

    `name` is the message's tag; `actor` is who handled it, or whom it was sent to, or the subject. Identifiers are
    those of W3C trace context: 32 and 16 hexadecimal digits. `started` is nanoseconds since 1970 by the clock of
    `node`, which need not agree with another's; `took` and `waited` (in the mailbox) are nanoseconds. `error` is a
    stable code, or nothing where it went well.
    """

    trace: str
    span: str
    parent: str
    kind: SpanKind
    name: str
    actor: str
    node: str
    started: int
    took: int
    waited: int = 0
    error: str = ""
    message: str = ""


class TraceSpans(Message, frozen=True, tag="node.trace_spans"):
    """What a node keeps of one trace; `dropped` counts spans that it had no room for."""

    spans: tuple[Span, ...] = ()
    dropped: int = 0


class GetTrace(Request[TraceSpans], frozen=True, tag="node.get_trace"):
    """Ask a node's control actor for the spans of a trace: its identifier, or the beginning of it."""

    trace: str


class TraceSummary(msgspec.Struct, frozen=True):
    """One trace as one node knows it. `first` is its earliest span there."""

    trace: str
    first: Span
    num_spans: int
    num_errors: int


class TraceList(Message, frozen=True, tag="node.trace_list"):
    traces: tuple[TraceSummary, ...] = ()


class ListTraces(Request[TraceList], frozen=True, tag="node.list_traces"):
    """Ask a node's control actor for the traces that it heard of last, the newest first."""

    limit: int = 50


class KeepSpans(Message, frozen=True, tag="node.keep_spans"):
    """A process that is about to go leaves its spans with the daemon."""

    spans: tuple[Span, ...]
