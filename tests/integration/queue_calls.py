"""A queue of a test's own, and short ways to ask it."""

from __future__ import annotations

from typing import Any

from callboard import Message, Node, Ref
from callboard.runtime.queue_state import QueueConfig
from callboard.schemas.queue import GetQueueStats, LeasedItem, NewItem, PutItems, QueueStats, TakeItems


class Task(Message, frozen=True, tag="test.task"):
    n: int
    padding: bytes = b""


async def queue(node: Node, name: str = "q", **config: Any) -> Ref:
    return await node.spawn("queue", QueueConfig(**{"backoff_s": 0.0, **config}), name=name)


async def again(node: Node, name: str = "q", **config: Any) -> Ref:
    """The same queue in its next life."""
    await node.stop(name)
    return await queue(node, name, **config)


async def put(ref: Ref, *payloads: bytes, **more: Any) -> tuple[int, ...]:
    return (await ref.ask(PutItems(tuple(NewItem(payload, **more) for payload in payloads)))).ids


async def take(ref: Ref, limit: int = 1, lease: float = 30.0, wait: float = 0.0) -> list[LeasedItem]:
    return list((await ref.ask(TakeItems(limit, lease, wait), 30.0)).items)


async def one(ref: Ref, lease: float = 30.0, wait: float = 20.0) -> LeasedItem:
    (item,) = await take(ref, 1, lease, wait)
    return item


async def stats(ref: Ref) -> QueueStats:
    return await ref.ask(GetQueueStats())
