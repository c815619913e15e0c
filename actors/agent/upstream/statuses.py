"""From a status and a body that say what went wrong to one of our errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .errors import (
    UpstreamAuth,
    UpstreamDown,
    UpstreamError,
    UpstreamGarbled,
    UpstreamLimited,
    UpstreamQuota,
    UpstreamRefused,
)
from .retry import retry_after

# More of an error page helps nobody.
SHOWN_CHARACTERS = 500

OVERLOADED = 529  # Anthropic's own
PASSING_STATUSES = {408, 409, 425, OVERLOADED}

_BY_TYPE: dict[str, type[UpstreamError]] = {
    "rate_limit_error": UpstreamLimited,
    "rate_limit_exceeded": UpstreamLimited,
    "tokens": UpstreamLimited,
    "requests": UpstreamLimited,
    "insufficient_quota": UpstreamQuota,
    "billing_error": UpstreamQuota,
    "overloaded_error": UpstreamDown,
    "api_error": UpstreamDown,
    "server_error": UpstreamDown,
    "timeout_error": UpstreamDown,
    "authentication_error": UpstreamAuth,
    "permission_error": UpstreamAuth,
    "invalid_api_key": UpstreamAuth,
    "invalid_request_error": UpstreamRefused,
    "not_found_error": UpstreamRefused,
    "request_too_large": UpstreamRefused,
}


def error_of_status(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """For an answer whose status is not 200."""
    kinds, said = _said(body)
    kind = _kind(status, kinds)
    if status < 400:
        text = f"the endpoint answered with status {status}, which is no answer to this"
        location = headers.get("location", "")
        return UpstreamRefused(text, hint=f"it points to {location.partition('?')[0]}" if location else "")
    error = kind(f"the endpoint says (status {status}): {said}" if said else f"the endpoint says status {status}")
    error.retry_after = retry_after(headers)
    return error


def error_in_stream(body: bytes) -> UpstreamError:
    """For an error that comes in place of the rest of an answer."""
    kinds, said = _said(body)
    kind = next((_BY_TYPE[kind] for kind in kinds if kind in _BY_TYPE), UpstreamDown)
    return kind(f"the endpoint broke off: {said or ', '.join(kinds) or 'it does not say why'}")


def no_stream(content_type: str) -> UpstreamError:
    return UpstreamGarbled(f"the endpoint answered with '{content_type or 'no type'}', not with a stream of events")


def _kind(status: int, kinds: tuple[str, ...]) -> type[UpstreamError]:
    if status == 429:
        # The same status for two things: only one of them goes away by waiting.
        return UpstreamQuota if "insufficient_quota" in kinds else UpstreamLimited
    if status in (401, 403, 407):
        return UpstreamAuth
    if status == 402:
        return UpstreamQuota
    if status >= 500 or status in PASSING_STATUSES:
        return UpstreamDown
    return UpstreamRefused


def _said(body: bytes) -> tuple[tuple[str, ...], str]:
    """The error's types and codes, and what it says; of a body in any shape."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return (), _short(body.decode("utf-8", "replace"))
    if isinstance(found, dict) and isinstance(found.get("error"), dict | str):
        found = found["error"]
    if isinstance(found, str):
        return (), _short(found)
    if not isinstance(found, dict):
        return (), _short(body.decode("utf-8", "replace"))
    kinds = tuple(str(found[key]) for key in ("code", "type") if found.get(key))
    said = found.get("message") or found.get("detail") or found.get("msg") or ""
    return kinds, _short(said if isinstance(said, str) else msgspec.json.encode(said).decode())


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
