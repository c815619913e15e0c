"""Sends runs to a collector over OTLP/HTTP: `callboard run --show ID --otel http://localhost:4318`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from ... import __version__
from ...runtime.otlp_http import send
from ...runtime.refs import Ref
from ...schemas.agent import AttachRun
from .log import RunLog
from .otel import Json, otlp, spans_of
from .show import prompts

# Spans for one request; collectors bound what they take at once.
BATCH = 512


async def export_run(
    agents: Ref,
    run: str,
    endpoint: str = "",
    *,
    content: bool = False,
    headers: Mapping[str, str] | None = None,
    version: str = __version__,
) -> int:
    """Send a run, and all that it started, to a collector. Returns the number of spans.

    `agents`: the actor that knows the runs. `endpoint`: default from OTEL_EXPORTER_OTLP_ENDPOINT, or this machine's
    port 4318. `content`: with what was said, prompts included. `headers`: default from OTEL_EXPORTER_OTLP_HEADERS.
    Raises NoSuchRun, ExportFailed, ConfigError.
    """
    spans: list[Json] = []
    async for log in _with_children(agents, run):
        spans += spans_of(log, content=content, prompts=prompts(log) if content else None)
    batches = (otlp(spans[first : first + BATCH], version) for first in range(0, len(spans), BATCH))
    await send(batches, endpoint, headers)
    return len(spans)


async def _with_children(agents: Ref, run: str) -> AsyncIterator[RunLog]:
    waiting = [run]
    while waiting:
        one = waiting.pop(0)
        log = RunLog(one)
        async with agents.stream(AttachRun(one, 0, follow=False)) as entries:
            async for entry in entries:
                log.apply(entry.event)
        waiting += [step.child for step in log.steps.values() if step.child]
        yield log
