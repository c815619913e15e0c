"""What a message class says about itself: what answers it, and how those answers decode."""

from __future__ import annotations

import functools
import typing
from typing import Any, NamedTuple

import msgspec

from ..schemas.base import Message, Request, StreamRequest
from ..schemas.wire import Frame

# What decoding raises for bytes that are no message: also for text that is no UTF-8, and for nesting without end.
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Answers(NamedTuple):
    """What a request is answered with. `item` is None unless it streams; `result` is `NoneType` for no value."""

    item: Any
    result: Any
    decoder: msgspec.msgpack.Decoder[Frame[Any]]


@functools.cache
def answers(request: type[Message]) -> Answers:
    """Read the reply types off `class Ask(Request[R])` or `class Follow(StreamRequest[Item, R])`.

    Raises TypeError for a message that is not a request.
    """
    for base in request.__mro__:
        for generic in _bases(base):
            origin, args = typing.get_origin(generic), typing.get_args(generic)
            if origin is StreamRequest and not isinstance(args[0], typing.TypeVar):
                item, result = args
                body = item if result is None or result is type(None) else item | result
                return Answers(item, _none(result), msgspec.msgpack.Decoder(Frame[body]))
            if origin is Request and not isinstance(args[0], typing.TypeVar):
                return Answers(None, _none(args[0]), msgspec.msgpack.Decoder(Frame[args[0]]))
    raise TypeError(f"{request.__name__} is no request: derive it from Request[Reply] or StreamRequest[Item, Reply]")


def _bases(cls: type) -> tuple[Any, ...]:
    return cls.__dict__.get("__orig_bases__", cls.__bases__)


def _none(result: Any) -> Any:
    return type(None) if result is None else result


def tag_of(message: type[Message] | Message) -> str:
    """The dotted tag that names a message's type on the bus."""
    return str(message.__struct_config__.tag)
