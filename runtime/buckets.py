"""Values by key in a bucket of JetStream's, for all that share the bus: synced, compare-and-set, and gone after a time.

For what people may leave behind, and nobody has to clean up: a value goes when its time is over, and the oldest go
where all of them together take more room than the bucket has.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ConfigError, Conflict, Disconnected, StoreUnavailable, TooLarge
from .jetstream import JetStream, Refused, WrongSequence

if TYPE_CHECKING:
    from .node import Node

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_NAME_IN_USE = 10058
_NANO = 1_000_000_000


class Kept(NamedTuple):
    """`revision` is a new one with each write."""

    data: bytes
    revision: int


class Bucket:
    """Made by `open`. Errors of all calls: NoStore, StoreUnavailable; ConfigError for what cannot be a key."""

    def __init__(self, jetstream: JetStream, config: dict[str, Any], patience: float) -> None:
        self._jetstream = jetstream
        self._config = config
        self._patience = patience

    @classmethod
    async def open(cls, node: Node, name: str, *, ttl_s: float, max_bytes: int) -> Bucket:
        """The bucket of that name, made where there is none. The last one who opens it decides how long values stay
        (`ttl_s`, after their last write) and how much room they have together."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"'{name}' is no name for a bucket: use letters, digits, '-' and '_'")
        config = {
            "name": f"KV_{name}",
            "subjects": [f"$KV.{name}.>"],
            "max_msgs_per_subject": 1,
            "max_age": int(ttl_s * _NANO),
            "max_bytes": max_bytes,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "discard": "old",
            "storage": "file",
        }
        jetstream = node.jetstream
        try:
            await jetstream.api(f"STREAM.CREATE.{config['name']}", config)
        except Refused as error:
            if error.number != _NAME_IN_USE:
                raise
            await jetstream.api(f"STREAM.UPDATE.{config['name']}", config)
        return cls(jetstream, config, node.ask_timeout)

    @property
    def room(self) -> int:
        """How many bytes a value may have."""
        return self._jetstream.max_payload - 1024

    async def get(self, key: str) -> Kept | None:
        last = await self._jetstream.last(self._config["name"], self._subject(key))
        return None if last is None or not last.data else Kept(last.data, last.seq)

    async def put(self, key: str, data: bytes, revision: int = 0) -> int:
        """Write, if `revision` is still the last one of this key (0: there is none); returns the new revision.

        Raises Conflict, StoreFull, TooLarge: not written. StoreUnavailable: it may have been.
        """
        if len(data) > self.room:
            raise TooLarge(f"a value of {len(data):,} bytes is over the bucket's limit of {self.room:,}")
        subject = self._subject(key)
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    try:
                        return await self._jetstream.publish(self._config, subject, data, revision)
                    except WrongSequence:
                        kept = await self.get(key)
                        if kept is not None and kept.data == data and kept.revision > revision:
                            return kept.revision  # it was written, and the answer was lost
                        raise Conflict(f"{key} was changed meanwhile", hint="read it again") from None
                    except (Disconnected, TimeoutError):
                        continue
        except TimeoutError:
            raise StoreUnavailable(f"{key} could not be written within {self._patience:g} s") from None

    async def delete(self, key: str) -> None:
        """Nothing happens where it is not there."""
        await self._jetstream.purge(self._config["name"], self._subject(key))

    def _subject(self, key: str) -> str:
        if not _NAME.fullmatch(key):
            raise ConfigError(f"'{key}' is no key: use letters, digits, '-' and '_'")
        return f"{self._config['subjects'][0][:-1]}{key}"
