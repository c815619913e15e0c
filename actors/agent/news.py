"""What is said on free subjects of what waits for people, so that clients need not ask again and again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...runtime.errors import BusError
from ...runtime.log import log as logger
from ...runtime.node import Node
from ...schemas.agent import APPROVAL_CLOSED, APPROVAL_OPENED, ApprovalClosed, ApprovalOpened
from ...schemas.agent_log import AnyEvent, ApprovalAsked, ApprovalGiven, RunEnded
from .log import RunLog

News = ApprovalOpened | ApprovalClosed


def approval_news(log: RunLog, events: Sequence[AnyEvent]) -> list[News]:
    """Of the events that a run wrote last."""
    return [news for event in events for news in _of(log, event)]


def _of(log: RunLog, event: AnyEvent) -> Iterator[News]:
    match event:
        case ApprovalAsked():
            yield ApprovalOpened(id=event.id, run=log.run, kind=event.kind, tool=event.tool)
        case ApprovalGiven():
            yield ApprovalClosed(id=event.id, run=log.run, verdict=event.verdict, by=event.by)
        case RunEnded():
            given = {one.id for one in log.events if isinstance(one, ApprovalGiven)}
            for one in log.events:
                if isinstance(one, ApprovalAsked) and one.id not in given:
                    yield ApprovalClosed(id=one.id, run=log.run)
        case _:
            pass


async def announce(node: Node, news: Sequence[News]) -> None:
    try:
        for one in news:
            await node.publish(APPROVAL_OPENED if isinstance(one, ApprovalOpened) else APPROVAL_CLOSED, one)
    except BusError as error:  # who listens asks for the list when it is back
        logger.info("what waits for people is not said: %s", error)
