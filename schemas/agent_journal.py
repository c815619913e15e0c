"""What an executor of runs writes: one journal for all that it has under way, so that they share each sync of the disk.

A run that ends, or waits for people, moves into a log of its own (`agents.run.<run>`, of the events alone), and the
journal keeps its `Moved`. Array-like, since every write pays for its bytes: new fields go to the end, with defaults.
"""

from __future__ import annotations

import msgspec

from .agent import Approval, RunInfo
from .agent_log import AnyEvent


class Wrote(msgspec.Struct, frozen=True, array_like=True, tag="w"):
    """Events of a run, numbered from `first`. They may be there twice, after a compaction."""

    run: str
    first: int
    events: tuple[AnyEvent, ...]


class Moved(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    """Events up to number `info.events` are in the run's own log."""

    info: RunInfo
    approvals: tuple[Approval, ...] = ()


class Removed(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """What the journal says of these runs before this record counts no more, and their own logs go."""

    runs: tuple[str, ...]


JournalRecord = Wrote | Moved | Removed
