"""What every message is: a frozen msgspec Struct with a dotted tag, and a request that names its reply in its type.

Messages are shared inside a process, so their fields must be immutable all the way down: tuple, bytes, str, numbers,
other messages. Unknown fields are ignored and new fields have defaults, so old and new nodes can share a bus.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

R = TypeVar("R")
Item = TypeVar("Item")


class Message(msgspec.Struct, frozen=True, tag_field="type"):
    """Base of everything that crosses the bus. A subclass gives its tag: `class Add(Message, tag="demo.add")`."""


class Request(Message, Generic[R], frozen=True):
    """A message that is answered with one `R`: `class Add(Request[Count], tag="demo.add")`."""


class StreamRequest(Request[R], Generic[Item, R], frozen=True):
    """A request answered with any number of `Item` and then one `R` (`None` where there is nothing to sum up).

    `ref.stream(request)` iterates the items, and its `result` holds the `R` after the last one; `ref.ask(request)`
    lets the items go and returns the `R`.
    """


class ErrorInfo(msgspec.Struct, frozen=True, tag="error", tag_field="type"):
    """An error as it crosses the bus.

    `code` is stable and dotted (`actor.mailbox_full`), `message` says what is wrong, `hint` what to do next, and
    `detail` holds what helps a developer: the remote traceback, if there is one.
    """

    code: str
    message: str
    hint: str = ""
    detail: str = ""
