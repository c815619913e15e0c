"""What durable state looks like where it is kept. These are no messages: they lie in JetStream streams.

Array-like, since every write pays for its bytes; new fields go to the end and have defaults.
"""

from __future__ import annotations

import msgspec

NIL = msgspec.Raw(b"\xc0")


class Saved(msgspec.Struct, frozen=True, array_like=True):
    """An actor's snapshot. `epoch` counts its incarnations, `owner` names the one that wrote it, `number` its saves.

    `kind` is the actor's class by name; `state` is what `snapshot` returned, as MessagePack, NIL before the first.
    """

    epoch: int
    owner: bytes
    number: int
    kind: str
    state: msgspec.Raw = NIL


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """In a batch of a log: the append that had this idempotency key wrote `count` events from number `first` on."""

    key: str
    first: int
    count: int


class LogBatch(msgspec.Struct, frozen=True, array_like=True):
    """Events that were written together: those numbered `first` and up, each as MessagePack.

    `epoch` and `owner` are those of the log's owner (0 and empty before it ever had one), whoever appends. `id` names
    the batch, so that its writer knows it again when the acknowledgement was lost. A batch without events is an owner
    taking over. `at` is when the events were first written (RFC 3339), where an import wrote them again.
    """

    epoch: int
    owner: bytes
    id: bytes
    first: int
    events: tuple[msgspec.Raw, ...] = ()
    marks: tuple[Mark, ...] = ()
    at: str = ""
