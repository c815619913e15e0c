"""A crowd at a gateway, a third of which goes away at any moment of its requests, and what is left of it afterwards."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import anyio

from ...runtime.refs import Ref
from ...schemas.gateway import AskGateway, GatewayInfo
from ...schemas.serve_stats import EngineStats, GetStats
from .errors import BenchFailed
from .gateway_http import DONE
from .gateway_paths import PATH, Talk, connection_to

DROPPING = 1 / 3
# How a client goes: in the midst of sending, before any answer, or in the midst of it, by a close or by a reset.
IN_BODY, BEFORE_ANSWER, IN_ANSWER = "in its body", "before the answer", "in the answer"
SETTLE_S = 30.0
_LOOK_S = 0.01


@dataclass
class Outcome:
    """`statuses`: of all answers that began. `dropped`: clients that went away, by when. `whole`: streams that a client
    stayed for and that came to their end; `refused`: 429 and 503; `broken`: those that ended otherwise, with why."""

    statuses: Counter[int] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    whole: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """Answers with a status from 500 on that do not say to come again."""
        return sum(count for status, count in self.statuses.items() if status >= 500 and status != 503)


async def crowd(url: str, talks: Sequence[Talk], requests: int, seed: str) -> Outcome:
    """A client for each of `talks`, all at once, each with so many requests one after another. Raises nothing of what
    goes wrong: it is in the outcome."""
    outcome = Outcome()
    numbers = random.Random(seed)
    async with anyio.create_task_group() as group:
        for talk in talks:
            group.start_soon(_client, url, talk, requests, random.Random(numbers.random()), outcome)
    return outcome


async def _client(url: str, talk: Talk, requests: int, numbers: random.Random, outcome: Outcome) -> None:
    for _ in range(requests):
        if numbers.random() < DROPPING:
            await _drop(url, talk, numbers, outcome)
        else:
            await _stay(url, talk, outcome)


async def _stay(url: str, talk: Talk, outcome: Outcome) -> None:
    last = b""
    try:
        async with connection_to(url) as connection:
            status = await connection.post(PATH, talk.body)
            outcome.statuses[status] += 1
            async for piece in connection.pieces():
                last = piece
    except (OSError, EOFError, ValueError, BenchFailed) as error:
        outcome.broken.append(repr(error))
        return
    if status == 200 and DONE in last:
        outcome.whole += 1
    elif status in (429, 503):
        outcome.refused += 1
    else:
        outcome.broken.append(f"{status}, and last {last[-200:]!r}")


async def _drop(url: str, talk: Talk, numbers: random.Random, outcome: Outcome) -> None:
    when = numbers.choice((IN_BODY, BEFORE_ANSWER, IN_ANSWER, IN_ANSWER))
    resetting = numbers.random() < 0.5
    sent = numbers.random() if when == IN_BODY else 1.0
    pieces = numbers.randrange(talk.output)
    try:
        async with connection_to(url) as connection:
            asking = asyncio.ensure_future(connection.post(PATH, talk.body, sent))
            if when == BEFORE_ANSWER:
                await asyncio.wait([asking], timeout=numbers.random() * 0.1)
            else:
                await asking
            if asking.done() and (status := asking.result()):
                outcome.statuses[status] += 1
                if when == IN_ANSWER:
                    await _read_some(connection.pieces(), pieces)
            asking.cancel()
            await asyncio.wait([asking])
            outcome.dropped[when] += 1
            if resetting:
                connection.reset()
    except (OSError, EOFError, ValueError, BenchFailed) as error:
        outcome.broken.append(repr(error))


async def _read_some(pieces: AsyncIterator[bytes], count: int) -> None:
    async for _ in pieces:
        count -= 1
        if count < 0:
            return


@dataclass(frozen=True)
class Left:
    """What a crowd has left behind once nothing is under way; all of it should be 0."""

    blocks: int
    connections: int
    tasks: int
    requests: int


async def before(gateway: Ref) -> GatewayInfo:
    return await gateway.ask(AskGateway())


async def left_behind(gateway: Ref, scheduler: Ref, before: GatewayInfo) -> Left:
    """Compared with the gateway as it was before; looked at until all is gone, for `SETTLE_S` at most: the last
    clients' going away is found out in a moment."""
    deadline = anyio.current_time() + SETTLE_S
    while True:
        now = await gateway.ask(AskGateway())
        left = _left(before, now, await scheduler.ask(GetStats()))
        if left == Left(0, 0, 0, 0) or anyio.current_time() > deadline:
            return left
        await anyio.sleep(_LOOK_S)


def _left(before: GatewayInfo, now: GatewayInfo, stats: EngineStats) -> Left:
    return Left(
        blocks=stats.num_blocks - stats.free_blocks,
        connections=max(0, now.connections - before.connections),
        tasks=max(0, now.tasks - before.tasks),
        requests=max(0, now.open - before.open) + stats.running + stats.waiting,
    )
