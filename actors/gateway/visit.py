"""Who asks: what is known of the client of the request that the present task works for.

It is in a context variable and not in parameters, because what an answer costs is known where a model is asked, below
every route of every protocol. A server sets it before it answers: `with visited(Visit(...)):`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from .http_meters import KeyMeter
from .rates import Allowance


@dataclass(slots=True)
class Visit:
    """`name`: that of the key that was shown, "" where none is asked for."""

    name: str = ""
    allowance: Allowance | None = None
    meter: KeyMeter | None = None

    def spend(self, tokens: int) -> None:
        """An answer cost so many tokens, its prompt's included."""
        if self.meter is not None:
            self.meter.tokens += tokens
        if self.allowance is not None:
            self.allowance.spend(tokens, time.monotonic())


_NOBODY = Visit()
_present: ContextVar[Visit] = ContextVar("gateway_visit", default=_NOBODY)


def present() -> Visit:
    return _present.get()


def client_name() -> str:
    """For `Generate.client` and its like: clients of different keys share an engine fairly."""
    return _present.get().name


@contextmanager
def visited(visit: Visit) -> Iterator[None]:
    token = _present.set(visit)
    try:
        yield
    finally:
        _present.reset(token)
