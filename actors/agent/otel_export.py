"""Sends runs to a collector over OTLP/HTTP: `callboard run --show ID --otel http://localhost:4318`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from urllib.parse import unquote, urlsplit

import msgspec

from ... import __version__
from ...runtime.errors import ConfigError, MissingExtra
from ...runtime.refs import Ref
from ...schemas.agent import AttachRun
from .errors import AgentError
from .log import RunLog
from .otel import Json, otlp, spans_of
from .show import prompts

TIMEOUT_S = 30.0
# Spans for one request; collectors bound what they take at once.
BATCH = 512
# OpenTelemetry's own variable: `name=value,name=value`, values percent-encoded.
HEADERS_VARIABLE = "OTEL_EXPORTER_OTLP_HEADERS"
ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
USUAL_ENDPOINT = "http://localhost:4318"


class ExportFailed(AgentError):
    code = "agent.otel"
    default_hint = "check the collector's address, and that it takes OTLP over HTTP as JSON (usually port 4318)"


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
    try:
        import httpx2
    except ImportError as error:
        raise MissingExtra.of("otel", "the export of traces") from error
    url = traces_url(endpoint or os.environ.get(ENDPOINT_VARIABLE, "") or USUAL_ENDPOINT)
    sent = {"content-type": "application/json", **(headers_of(os.environ) if headers is None else headers)}
    spans: list[Json] = []
    async for log in _with_children(agents, run):
        spans += spans_of(log, content=content, prompts=prompts(log) if content else None)
    async with httpx2.AsyncClient(timeout=TIMEOUT_S) as client:
        for first in range(0, len(spans), BATCH):
            body = msgspec.json.encode(otlp(spans[first : first + BATCH], version))
            try:
                response = await client.post(url, content=body, headers=sent)
            except httpx2.HTTPError as error:
                raise ExportFailed(f"no answer from the collector: {str(error) or type(error).__name__}") from error
            _check(response.status_code, response.content)
    return len(spans)


def traces_url(endpoint: str) -> str:
    """Where a collector takes traces: `/v1/traces` below its address, unless that is what was given."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"'{endpoint}' is no http address of a collector", hint="for example http://localhost:4318")
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith("/v1/traces") else f"{path}/v1/traces").geturl()


def headers_of(environment: Mapping[str, str]) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in environment.get(HEADERS_VARIABLE, "").split(",") if "=" in pair)
    return {unquote(name.strip()): unquote(value.strip()) for name, _, value in pairs}


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


class _PartialSuccess(msgspec.Struct, rename="camel"):
    rejected_spans: int | str = 0
    error_message: str = ""


class _Response(msgspec.Struct, rename="camel"):
    partial_success: _PartialSuccess = msgspec.field(default_factory=_PartialSuccess)


def _check(status: int, body: bytes) -> None:
    if status != 200:
        said = body[:300].decode("utf-8", "replace").strip()
        raise ExportFailed(f"the collector answered with status {status}: {said or 'it does not say why'}")
    try:
        partial = msgspec.json.decode(body or b"{}", type=_Response).partial_success
    except msgspec.DecodeError:
        return  # the status says that it has them
    if int(partial.rejected_spans):
        raise ExportFailed(f"the collector refused {partial.rejected_spans} spans: {partial.error_message}")
