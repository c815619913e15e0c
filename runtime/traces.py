"""One traced request as a whole: its spans collected from all nodes, made into a tree, drawn, or written as OTLP.

Two hosts' clocks differ, so what comes first follows from who caused whom; times of day are compared only between
spans of one node.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..schemas.trace import GetTrace, ListTraces, Span, SpanKind, TraceSummary
from .errors import ActorStopped, DeadlineExceeded, NoSuchActor, NoSuchTrace, NotUnderstood, UsageError

if TYPE_CHECKING:
    from .client import Client
    from .node import Node

# A node that says nothing by then is named as silent.
NODE_TIMEOUT_S = 3.0

_HANDLED = (SpanKind.HANDLE, SpanKind.RECEIVE)
_SENT_TO_ONE = (SpanKind.ASK, SpanKind.TELL, SpanKind.STREAM)


# Collecting


@dataclass(frozen=True)
class Collected:
    """What the nodes know of a trace. `dropped` spans found no room; `silent` nodes did not answer."""

    spans: tuple[Span, ...]
    dropped: int
    silent: tuple[str, ...]


async def collect(client: Client, trace: str) -> Collected:
    """Ask every node for the spans of a trace, named by its identifier or the beginning of it."""
    return await _collect(client.node, [info.node for info in await client.nodes()], trace)


async def collect_around(node: Node, trace: str) -> Collected:
    """The same of `node` itself and of all nodes that it has heard of. It needs no daemon, but a node's role."""
    others = sorted(node.links.peers.known) if node.links is not None else []
    return await _collect(node, list(dict.fromkeys([node.name, *others])), trace)


async def _collect(node: Node, names: Sequence[str], trace: str) -> Collected:
    answers, silent = await _ask_all(node, names, GetTrace(trace))
    spans = {span.span: span for answer in answers for span in answer.spans}
    return Collected(tuple(spans.values()), sum(answer.dropped for answer in answers), silent)


async def the_one(client: Client, trace: str) -> Collected:
    """The same for exactly one trace. Raises NoSuchTrace, UsageError where several begin like that."""
    found = await collect(client, trace)
    known = sorted({span.trace for span in found.spans})
    if not known:
        silent = f"; no answer from {', '.join(found.silent)}" if found.silent else ""
        raise NoSuchTrace(f"no node knows a trace {trace}{silent}")
    if len(known) > 1:
        raise UsageError(f"{len(known)} traces begin with {trace}", hint="for example " + ", ".join(known[:3]))
    return found


async def recent(client: Client, limit: int) -> tuple[list[TraceSummary], tuple[str, ...]]:
    """The last traces of all nodes, the newest first, and the nodes that did not answer."""
    answers, silent = await _ask_all(client.node, [info.node for info in await client.nodes()], ListTraces(limit))
    parts: dict[str, list[TraceSummary]] = collections.defaultdict(list)
    for answer in answers:
        for summary in answer.traces:
            parts[summary.trace].append(summary)
    merged = [
        TraceSummary(
            trace,
            # A root has no parent, and no other span began before it, whatever the clocks say.
            min((part.first for part in known), key=lambda span: (span.parent != "", span.started)),
            sum(part.num_spans for part in known),
            sum(part.num_errors for part in known),
        )
        for trace, known in parts.items()
    ]
    return sorted(merged, key=lambda summary: summary.first.started, reverse=True)[:limit], silent


async def _ask_all(node: Node, names: Sequence[str], request: Any) -> tuple[list[Any], tuple[str, ...]]:
    async def ask(name: str) -> Any:
        try:
            return await node.actor(f"node.{name}").ask(request, NODE_TIMEOUT_S)
        except (NoSuchActor, ActorStopped, DeadlineExceeded, NotUnderstood):  # it left, is stuck, or is older
            return None

    answers = await asyncio.gather(*map(ask, names))
    silent = tuple(name for name, answer in zip(names, answers, strict=True) if answer is None)
    return [answer for answer in answers if answer is not None], silent


# The tree


@dataclass(eq=False)
class Step:
    """A span and what it led to. `at` is when it began, in nanoseconds from its root."""

    span: Span
    at: int = 0
    children: list[Step] = field(default_factory=list)

    def walk(self) -> Iterator[Step]:
        """This step and all below it, in the order of a drawing."""
        waiting: list[Step] = [self]
        while waiting:
            step = waiting.pop()
            yield step
            waiting.extend(reversed(step.children))


def tree(spans: Iterable[Span]) -> list[Step]:
    """The roots, with all the rest below them. A span whose parent nobody knows is a root too."""
    steps = {span.span: Step(span) for span in sorted(spans, key=lambda span: (span.started, span.span))}
    children: dict[str, list[Step]] = collections.defaultdict(list)
    for step in steps.values():
        children[step.span.parent].append(step)
    roots = [step for step in steps.values() if step.span.parent not in steps or step.span.parent == step.span.span]
    reached: set[str] = set()
    # The second part: spans that claim each other as parents, which only somebody's forgery can bring about.
    for root in (*roots, *steps.values()):
        if root.span.span in reached:
            continue
        if root not in roots:
            roots.append(root)
        waiting = [root]
        reached.add(root.span.span)
        while waiting:
            step = waiting.pop()
            for child in children[step.span.span]:
                if child.span.span not in reached:
                    reached.add(child.span.span)
                    child.at = step.at + _offset(step.span, child.span)
                    step.children.append(child)
                    waiting.append(child)
            step.children.sort(key=lambda child: child.at)
    return roots


def _offset(parent: Span, child: Span) -> int:
    """How long after its parent a span began. On another node: as if both ways took the same time."""
    if parent.node == child.node:
        return max(0, child.started - parent.started)
    return max(0, parent.took - child.took) // 2


# Drawing


def draw(roots: list[Step]) -> list[tuple[str, ...]]:
    """Rows of a table. A sending and the one handling that it led to are one row."""
    rows: list[tuple[str, ...]] = [("WHAT", "MESSAGE", "NODE", "AT", "TOOK", "OUTCOME")]
    waiting = [(root, "", "") for root in reversed(roots)]
    while waiting:
        step, head, tail = waiting.pop()
        sent: Span | None = None
        if step.span.kind in _SENT_TO_ONE and len(step.children) == 1 and step.children[0].span.kind in _HANDLED:
            sent, step = step.span, step.children[0]
        rows.append((head + (step.span.actor or step.span.name), *_columns(step, sent)))
        last = len(step.children) - 1
        for index in range(last, -1, -1):
            branch, below = ("└─ ", "   ") if index == last else ("├─ ", "│  ")
            waiting.append((step.children[index], tail + branch, tail + below))
    return rows


def _columns(step: Step, sent: Span | None) -> tuple[str, ...]:
    span = step.span
    name = span.name if span.actor else ""
    kind = sent.kind if sent is not None else span.kind
    if kind in (SpanKind.TELL, SpanKind.STREAM, SpanKind.PUBLISH):
        name = f"{name} ({kind.value})"
    return name, span.node, f"+{milliseconds(step.at)}", milliseconds(span.took), _outcome(span, sent)


def _outcome(span: Span, sent: Span | None) -> str:
    said = f"{span.error}: {span.message}" if span.error else ""
    if sent is not None and sent.error and sent.error != span.error:
        said = f"{sent.error}: {sent.message}" + (f" (handler: {span.error})" if span.error else "")
    if said:
        return " ".join(said.split())
    if span.kind in (SpanKind.ASK, SpanKind.STREAM):
        return "ok, by one who keeps no spans"
    if span.kind is SpanKind.TELL:
        return "sent, not handled yet"
    waited = f", waited {milliseconds(span.waited)}" if span.waited > 1_000_000 else ""
    return f"ok{waited}"


def milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.1f} ms" if nanoseconds < 1e10 else f"{nanoseconds / 1e9:.1f} s"


# OTLP, as collectors read it (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding)

_OTLP_KIND = {
    SpanKind.ROOT: 1,
    SpanKind.HANDLE: 2,
    SpanKind.ASK: 3,
    SpanKind.STREAM: 3,
    SpanKind.TELL: 4,
    SpanKind.PUBLISH: 4,
    SpanKind.RECEIVE: 5,
}


def otlp(spans: Iterable[Span]) -> dict[str, Any]:
    """The spans as an OTLP/JSON `TracesData`, one resource for each node."""
    from .. import __version__

    by_node: dict[str, list[Span]] = collections.defaultdict(list)
    for span in sorted(spans, key=lambda span: span.started):
        by_node[span.node].append(span)
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes({"service.name": "callboard", "service.instance.id": node})},
                "scopeSpans": [
                    {"scope": {"name": "callboard", "version": __version__}, "spans": [_otlp_span(s) for s in known]}
                ],
            }
            for node, known in by_node.items()
        ]
    }


def _otlp_span(span: Span) -> dict[str, Any]:
    attributes: dict[str, str | int] = {
        "messaging.system": "callboard",
        "messaging.destination.name": span.actor,
        "callboard.kind": span.kind.value,
        "callboard.waited_ns": span.waited,
    }
    status: dict[str, Any] = {}
    if span.error:
        attributes["error.type"] = span.error
        status = {"code": 2, "message": span.message}
    return {
        "traceId": span.trace,
        "spanId": span.span,
        "parentSpanId": span.parent,
        "name": span.name,
        "kind": _OTLP_KIND[span.kind],
        "startTimeUnixNano": str(span.started),
        "endTimeUnixNano": str(span.started + span.took),
        "attributes": _attributes(attributes),
        "status": status,
    }


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in values.items()
        if value != ""
    ]
