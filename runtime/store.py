"""Snapshots of actors, in the KV bucket `callboard_state`: synced, compare-and-set, fenced by epochs.

Each incarnation takes a higher epoch before it handles its first message, by a write of its own. From then on an
earlier one that still lives (stopped for a while, cut off) finds that its next save is not the successor of its last.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import typing
from typing import TYPE_CHECKING, Any

import msgspec

from ..schemas.store import NIL, Saved
from .errors import Disconnected, Fenced, StateMismatch, StoreUnavailable
from .jetstream import JetStream, WrongSequence
from .messages import UNDECODABLE

if TYPE_CHECKING:
    from .actor import Actor

BUCKET = "callboard_state"
STREAM = f"KV_{BUCKET}"
SUBJECTS = f"$KV.{BUCKET}."

# As NATS's own clients make a bucket, so that `nats kv get callboard_state NAME` works.
CONFIG: dict[str, Any] = {
    "name": STREAM,
    "subjects": [f"{SUBJECTS}>"],
    "max_msgs_per_subject": 1,
    "allow_direct": True,
    "allow_rollup_hdrs": True,
    "deny_delete": True,
    "discard": "new",
    "storage": "file",
}

_decode = msgspec.msgpack.Decoder(Saved).decode
_encode = msgspec.msgpack.Encoder().encode


def state_type(kind: type[Actor[Any]]) -> Any:
    """What `restore` of a class takes. Raises TypeError where a class has only half of the pair, or names no type."""
    parameters = list(inspect.signature(kind.restore).parameters)
    hint = typing.get_type_hints(kind.restore).get(parameters[1]) if len(parameters) == 2 else None
    fits = hint is bytes or (isinstance(hint, type) and issubclass(hint, msgspec.Struct))
    from .actor import Actor

    if kind.snapshot is Actor.snapshot or kind.restore is Actor.restore or not fits:
        raise TypeError(
            f"{kind.__name__}: define both `snapshot(self)` and `restore(self, state: SomeStruct)`, or bytes"
        )
    return hint


class Snapshots:
    """The stored state of one incarnation of an actor. Calls of `save` run one after another."""

    def __init__(self, jetstream: JetStream, address: str, kind: type[Actor[Any]], patience: float) -> None:
        self._jetstream = jetstream
        self._subject = SUBJECTS + address
        self._address = address
        self._kind = kind
        self._patience = patience
        self._owner = secrets.token_bytes(8)
        self._lock = asyncio.Lock()
        self._seq = 0
        self._number = 0
        self._kept = NIL
        self.epoch = 0
        self.fenced: Fenced | None = None

    async def recover(self, actor: Actor[Any], state: Any) -> None:
        """Take the next epoch, then call `restore` with what was saved, decoded as `state`, if anything was.

        Raises StateMismatch, NoStore, StoreUnavailable.
        """
        await self._jetstream.ensure(CONFIG)
        while True:
            last = await self._last()
            if last is not None:
                self._seq, saved = last
                if saved.kind != self._kind.__qualname__:
                    raise StateMismatch(f"what is stored for {self._address} is of a {saved.kind}")
                self.epoch, self._kept = saved.epoch, saved.state
            self.epoch += 1
            try:
                await self._write(self._kept)
                break
            except Fenced:
                self.fenced = None  # another one took over at the same time: now it is our turn
        if self._kept != NIL:
            try:
                found = msgspec.msgpack.decode(self._kept, type=state)
            except UNDECODABLE as error:
                raise StateMismatch(f"what is stored for {self._address} does not fit its class: {error}") from error
            actor.restore(found)

    async def save(self, actor: Actor[Any], *, if_changed: bool = False) -> None:
        """Write what `snapshot` returns now; returns when it is on the disk.

        Waits out an absence of the server, up to the patience. Raises Fenced for good, once somebody has taken over;
        StoreFull and TooLarge: nothing was written; StoreUnavailable: what is stored is this state or the last one.
        """
        async with self._lock:
            if self.fenced is not None:
                raise self.fenced
            state = msgspec.Raw(_encode(actor.snapshot()))
            if not if_changed or state != self._kept:
                await self._write(state)

    async def _write(self, state: msgspec.Raw) -> None:
        self._number += 1
        saved = Saved(self.epoch, self._owner, self._number, self._kind.__qualname__, state)
        data = _encode(saved)
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    try:
                        self._seq = await self._jetstream.publish(CONFIG, self._subject, data, self._seq)
                        break
                    except WrongSequence:
                        if await self._is_written():
                            break
                    except (Disconnected, TimeoutError):
                        continue  # it may have been written: the expected sequence tells
        except TimeoutError:
            raise StoreUnavailable(
                f"the state of {self._address} could not be saved within {self._patience:g} s"
            ) from None
        self._kept = state

    async def _is_written(self) -> bool:
        """Whether the last one there is what we are about to write. Raises Fenced where it is somebody else's."""
        last = await self._last()
        if last is None or last[1].owner != self._owner:
            taken = "removed" if last is None else f"taken over in epoch {last[1].epoch}"
            self.fenced = Fenced(f"the state of {self._address} was {taken}, and this is epoch {self.epoch}")
            raise self.fenced
        self._seq = last[0]
        return last[1].number == self._number

    async def _last(self) -> tuple[int, Saved] | None:
        found = await self._jetstream.last(STREAM, self._subject)
        return None if found is None or not found.data else (found.seq, _decode(found.data))
