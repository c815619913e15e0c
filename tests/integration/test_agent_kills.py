"""An owner of runs dies, or stands still, at every write of a run: the run goes on, and nothing happens twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from agent_play import MODULE, company, lines, plain
from own_server import OwnServer

from callboard.actors.agent.executor import Executor, ExecutorConfig
from callboard.actors.agent.run import Run
from callboard.runtime.errors import ActorStopped, CallboardError, Fenced, StoreError
from callboard.runtime.node import Node
from callboard.runtime.supervision import Restart
from callboard.schemas.agent import AttachRun, BeginRun
from callboard.schemas.agent_log import AnyEvent, RunStarted, ToolAnswered
from callboard.schemas.agent_parts import Effect, Outcome, PolicyRule
from callboard.schemas.tool import ToolInfo

pytestmark = pytest.mark.anyio

STEPS = ("put", "look", "put+put", "ask_nobody", "put")
ALLOW = (PolicyRule(effect=Effect.ALLOW),)


class Frozen(Executor):
    """Stands still for ever at the write of that number, before it or after it."""

    at: tuple[int, bool] = (0, False)
    reached: asyncio.Event
    go: asyncio.Event
    writes = 0
    fenced: Fenced | None = None

    async def write(self, run: Run, first: int, events: Sequence[AnyEvent]) -> None:
        self.writes += 1
        number, after = self.at
        if self.writes == number and not after:
            await self._stand_still()
        try:
            await super().write(run, first, events)
        except Fenced as error:
            Frozen.fenced = error
            raise
        if self.writes == number and after:
            await self._stand_still()

    async def _stand_still(self) -> None:
        Frozen.reached.set()
        await Frozen.go.wait()


async def _whole(server: OwnServer, witness: Path, *steps: str) -> tuple[list[object], int]:
    """What an unbroken run writes, and in how many writes."""
    async with company(server.url, witness) as node:
        Frozen.at, Frozen.reached, Frozen.go = (0, False), asyncio.Event(), asyncio.Event()
        writer = await node.spawn(Frozen, ExecutorConfig("unbroken"), name="unbroken")
        await writer.ask(BeginRun("0-run", (_started(*steps),)))
        events = await _followed(node, "unbroken")
        cell: object = node.actors["unbroken"]
        return plain(events, "0-run"), cell._instance.writes  # type: ignore[attr-defined]


def _started(*steps: str) -> RunStarted:
    from agent_play import TOOLS, Steps

    options = msgspec.json.encode(Steps(steps, model=True)).decode()
    tools: tuple[ToolInfo, ...] = tuple(TOOLS.values())
    return RunStarted(planner=f"{MODULE}:Player", task="play", tools=tools, options=options, rules=ALLOW)


async def _followed(node: Node, address: str, run: str = "0-run") -> list[AnyEvent]:
    """The events of a run up to its end, whatever becomes of its executor meanwhile."""
    events: list[AnyEvent] = []
    while True:
        try:
            async with node.actor(address).stream(AttachRun(run, len(events))) as entries:
                async for entry in entries:
                    events.append(entry.event)
                return events
        except (ActorStopped, StoreError, CallboardError):
            await asyncio.sleep(0.05)  # it is being started again


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_second_owner_goes_on_from_every_write_and_the_first_is_fenced(
    server: OwnServer, tmp_path: Path, after: bool
) -> None:
    whole, num_writes = await _whole(server, tmp_path / "whole", *STEPS)
    effects = Counter(line.partition(" ")[0] for line in lines(tmp_path / "whole"))
    assert effects == {"put": 4}
    assert num_writes >= 8
    for number in range(1, num_writes + 1):
        witness = tmp_path / f"witness-{number}"
        async with company(server.url, witness) as node:
            Frozen.at, Frozen.reached, Frozen.go, Frozen.fenced = (
                (number, after),
                asyncio.Event(),
                asyncio.Event(),
                None,
            )
            journal = f"journal-{after}-{number}"
            first = await node.spawn(Frozen, ExecutorConfig(journal), name="first", restart=Restart.TEMPORARY)
            asking = asyncio.ensure_future(first.ask(BeginRun("0-run", (_started(*STEPS),))))
            await Frozen.reached.wait()
            await node.spawn(Executor, ExecutorConfig(journal), name="second")
            if number == 1 and not after:  # nothing was written: nobody but who asked knows of it
                await node.actor("second").ask(BeginRun("0-run", (_started(*STEPS),)))
            events = await _followed(node, "second")
            assert plain(events, "0-run") == whole, f"write {number}"
            Frozen.go.set()
            await asyncio.gather(asking, return_exceptions=True)
            while "first" in node.actors and number < num_writes:
                await asyncio.sleep(0.01)
            assert Frozen.fenced is not None or number == num_writes, "the first owner may not go on"
        found = lines(witness)
        assert len(found) == len({line.split()[1] for line in found}) == 4, found


async def test_a_call_that_may_not_be_repeated_is_not_and_the_model_is_told(server: OwnServer, tmp_path: Path) -> None:
    """It was under way when its owner died: at most once, by the default policy."""
    witness = tmp_path / "witness"
    async with company(server.url, witness) as node:
        Frozen.at, Frozen.reached, Frozen.go = (2, True), asyncio.Event(), asyncio.Event()
        await node.spawn(Frozen, ExecutorConfig("j"), name="first", restart=Restart.TEMPORARY)
        asking = asyncio.ensure_future(node.actor("first").ask(BeginRun("0-run", (_started("add", "look"),))))
        await Frozen.reached.wait()
        await node.spawn(Executor, ExecutorConfig("j"), name="second")
        events = await _followed(node, "second")
        answers = [event for event in events if isinstance(event, ToolAnswered)]
        assert [answer.outcome for answer in answers] == [Outcome.INTERRUPTED, Outcome.OK]
        assert "may or may not have been carried out" in answers[0].text
        Frozen.go.set()
        await asyncio.gather(asking, return_exceptions=True)
    assert len(lines(witness)) <= 1
