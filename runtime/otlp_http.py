"""Sends spans to a collector of OpenTelemetry over HTTP, as JSON (https://opentelemetry.io/docs/specs/otlp/#otlphttp).

httpx2 comes with the extra `otel`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from .errors import CallboardError, ConfigError, MissingExtra

TIMEOUT_S = 30.0
# OpenTelemetry's own variables. Headers: `name=value,name=value`, values percent-encoded.
HEADERS_VARIABLE = "OTEL_EXPORTER_OTLP_HEADERS"
ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
USUAL_ENDPOINT = "http://localhost:4318"


class ExportFailed(CallboardError):
    code = "otel"
    default_hint = "check the collector's address, and that it takes OTLP over HTTP as JSON (usually port 4318)"


async def send(batches: Iterable[Any], endpoint: str = "", headers: Mapping[str, str] | None = None) -> None:
    """Send each of `batches`, a `TracesData`, to the collector.

    `endpoint`: default from OTEL_EXPORTER_OTLP_ENDPOINT, or this machine's port 4318. `headers`: default from
    OTEL_EXPORTER_OTLP_HEADERS. Raises ExportFailed, ConfigError, MissingExtra.
    """
    httpx2 = require_httpx2()
    url = traces_url(endpoint or os.environ.get(ENDPOINT_VARIABLE, "") or USUAL_ENDPOINT)
    sent = {"content-type": "application/json", **(headers_of(os.environ) if headers is None else headers)}
    async with httpx2.AsyncClient(timeout=TIMEOUT_S) as client:
        for batch in batches:
            try:
                response = await client.post(url, content=msgspec.json.encode(batch), headers=sent)
            except httpx2.HTTPError as error:
                raise ExportFailed(f"no answer from the collector: {str(error) or type(error).__name__}") from error
            _check(response.status_code, response.content)


def require_httpx2() -> Any:
    """The module. Raises MissingExtra."""
    try:
        import httpx2
    except ImportError as error:
        raise MissingExtra.of("otel", "the export of traces") from error
    return httpx2


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
