"""A request that carries W3C trace context (https://www.w3.org/TR/trace-context/) is traced, by whatever protocol it
came: a span of its own, and what it leads to on the bus below that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...runtime.context import current_place, enter_trace
from ...runtime.tracing import Trace
from .site import Site

HEADER = "traceparent"
MAX_NAME = 200


@contextmanager
def traced(site: Site, traceparent: str, name: str) -> Iterator[Trace | None]:
    """Yields the place of the request's span, which its answer tells; None where `traceparent` is none."""
    trace = Trace.parse(traceparent.strip())
    if trace is None:
        yield None
        return
    token = enter_trace(trace)
    try:
        with site.node.tracer.begin(name[:MAX_NAME]) as span:
            yield span.trace
    finally:
        current_place.reset(token)
        if trace.sampled and site.exporter is not None:
            site.exporter.ended(trace.trace_id)
