"""A route's work as an endpoint of an API: what goes wrong is said in that API's shape, and in its own words."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...runtime.errors import CallboardError, RequestInvalid
from ...runtime.log import log
from ...schemas.serve import Generate
from .asking import Begun, ClientGone
from .errors import BadBody, retry_after, status_of
from .site import Site
from .sse import event

# nginx's word for a client that went away: nobody reads it, but logs and counters do.
CLIENT_CLOSED = 499


class EngineRefused(BadBody):
    """A value that no engine takes."""

    code = RequestInvalid.code


Work = Callable[[Site, Request], Awaitable[Response]]
ErrorBody = Callable[[CallboardError], object]

# A refusal of the engine's begins with the field that it is of.
_FIELD = re.compile(r"(?:a string of |the )?([a-z_]+)\b")
_FIELDS = frozenset(Generate.__struct_fields__)
# What all APIs here call otherwise than the engine does; a table of an API's own goes before.
_USUAL = {"session": "session_id", "client": "user", "prompt_ids": "prompt"}


def answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def error_answer(error: CallboardError, body: ErrorBody) -> Response:
    seconds = retry_after(error)
    return answer(body(error), status_of(error), {} if seconds is None else {"retry-after": str(seconds)})


def endpoint(
    work: Work, site: Site, body: ErrorBody, names: Mapping[str, str] | None = None
) -> Callable[[Request], Awaitable[Response]]:
    """`body`: of an error's answer. `names`: what this endpoint calls fields of the engine's requests."""

    async def run(request: Request) -> Response:
        try:
            return await work(site, request)
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED)
        except CallboardError as error:
            return error_answer(named(error, names or {}), body)

    return run


def named(error: CallboardError, names: Mapping[str, str]) -> CallboardError:
    """An engine's refusal of a value, as one of the field that the client sent; any other error is as it was."""
    if not isinstance(error, RequestInvalid):
        return error
    match = _FIELD.match(error.message)
    if match is None or match[1] not in _FIELDS:
        return error
    field = names.get(match[1]) or _USUAL.get(match[1]) or match[1]
    return EngineRefused(f"{field}{error.message[match.end() :]}", param=field, hint=error.hint)


async def or_error(
    events: AsyncIterator[bytes], answer: Begun[Any], body: ErrorBody, name: str = ""
) -> AsyncGenerator[bytes, None]:
    """The events that are made of `answer`, which is closed whatever ends them. An error in mid-stream is the last of
    them; `name` is that of its kind, where an API has one."""
    async with aclosing(answer):
        try:
            async for each in events:
                yield each
        except CallboardError as error:
            log.info("a stream ends with an error: %s", error)
            yield event(msgspec.json.encode(body(error)), name)
