"""What `callboard bench` sends: a counter's messages, padded to the size that a measurement asks for."""

from __future__ import annotations

from .base import Message, Request, StreamRequest
from .blob import Blob


class Count(Message, frozen=True, tag="bench.count"):
    value: int


class Add(Request[Count], frozen=True, tag="bench.add"):
    amount: int = 1
    padding: str = ""


class Note(Message, frozen=True, tag="bench.note"):
    """Counts like `Add`, and nobody answers."""

    amount: int = 1
    padding: str = ""


class Arrivals(Message, frozen=True, tag="bench.arrivals"):
    """How many notes came since the last report, and when the last had come (this machine's monotonic clock)."""

    count: int
    at: float


class Report(Request[Arrivals], frozen=True, tag="bench.report"):
    """Sent after the notes: what is handled in order is handled once they all are."""


class Piece(Message, frozen=True, tag="bench.piece"):
    number: int
    padding: str = ""


class Follow(StreamRequest[Piece, Count], frozen=True, tag="bench.follow"):
    """Ask for a stream of `count` pieces."""

    count: int


class Population(Message, frozen=True, tag="bench.population"):
    """How long it took to start the actors, and the resident memory of each (KiB)."""

    seconds: float
    kb_per_actor: float


class Populate(Request[Population], frozen=True, tag="bench.populate"):
    """Ask for `count` supervised children, each with an address of its own."""

    count: int


class Read(Message, frozen=True, tag="bench.read"):
    size: int


class ReadBlob(Request[Read], frozen=True, tag="bench.read_blob"):
    """Answered once the other process has all the bytes, checked: mapped if `mapped`, else streamed."""

    blob: Blob
    mapped: bool


class SavesTaken(Message, frozen=True, tag="bench.saved"):
    seconds: float


class SaveTimes(Request[SavesTaken], frozen=True, tag="bench.save"):
    """Save the actor's state so many times, one after the other."""

    times: int
