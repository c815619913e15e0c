"""The body of a request as a typed value, or which of its fields is wrong."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from .errors import BadBody, BodyTooLarge

T = TypeVar("T")

_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<path>.*)`)?$", re.DOTALL)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Raises BodyTooLarge as soon as that is known, BadBody for a client that goes away in its middle."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large(max_bytes)
    pieces: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise BadBody("the body of the request ends before it is whole")
        piece = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise too_large(max_bytes)
        pieces.append(piece)
        more = message.get("more_body", False)
    return b"".join(pieces)


def decode_body(body: bytes, kind: type[T]) -> T:
    """Raises BadBody, with the path of the field and what was expected there."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        match = _PATH.match(str(error))
        path = (match["path"] or "") if match else ""
        what = match["what"] if match else str(error)
        raise BadBody(f"{path or 'the body'}: {what[:1].lower()}{what[1:]}", param=path) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBody(f"the body is no JSON: {error}") from error
    except RecursionError:
        raise BadBody("the body is nested too deeply") from None


def too_large(max_bytes: int, setting: str = "max_body_mib") -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes >> 20} MiB", hint=f"the gateway's `{setting}` sets that")


def decode_query(request: Request, kind: type[T]) -> T:
    """The query of a request as a typed value. Raises BadBody, as for a body."""
    try:
        return msgspec.convert(dict(request.query_params), kind, strict=False)
    except msgspec.ValidationError as error:
        match = _PATH.match(str(error))
        path = (match["path"] or "") if match else ""
        what = match["what"] if match else str(error)
        raise BadBody(f"{path or 'the query'}: {what[:1].lower()}{what[1:]}", param=path) from error
