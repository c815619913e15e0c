"""An owner of runs dies, or stands still, at every write of a run: the run goes on, and nothing happens twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from agent_play import MODULE, THIS_FILE, TOOLS, Steps, company, lines, plain
from own_server import OwnServer
from workers import own_workers

from callboard.actors.agent.executor import Executor, ExecutorConfig
from callboard.actors.agent.policy import Policy
from callboard.actors.agent.run import Run
from callboard.actors.agent.runs import Runs, RunsConfig
from callboard.actors.agent.scripted import Scripted, ScriptedConfig
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import CallboardError, Fenced
from callboard.runtime.node import Node
from callboard.runtime.placement import Process
from callboard.runtime.supervision import Restart
from callboard.schemas.agent import AgentRun, AnswerApproval, AttachRun, BeginRun, ListApprovals
from callboard.schemas.agent_log import AnyEvent, RunEnded, RunStarted, ToolAnswered
from callboard.schemas.agent_parts import ApprovalKind, Effect, Outcome, PolicyRule, Recovery, Verdict
from callboard.schemas.scripted import Match, ScriptedAnswer
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
        except CallboardError:
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


@pytest.mark.parametrize(
    ("recovery", "outcomes"),
    [
        (Recovery.TELL, [Outcome.INTERRUPTED, Outcome.OK]),
        (Recovery.REPEAT, [Outcome.OK, Outcome.OK]),
        (Recovery.ASK, [Outcome.INTERRUPTED, Outcome.OK]),
    ],
)
async def test_a_call_that_may_not_be_repeated_is_left_to_the_policy(
    server: OwnServer, tmp_path: Path, recovery: Recovery, outcomes: list[Outcome]
) -> None:
    """It was under way when its owner died: by default at most once, and the model is told."""
    witness = tmp_path / "witness"
    async with company(server.url, witness) as node:
        Frozen.at, Frozen.reached, Frozen.go = (2, True), asyncio.Event(), asyncio.Event()
        await node.spawn(Frozen, ExecutorConfig("j"), name="first", restart=Restart.TEMPORARY)
        asking = asyncio.ensure_future(node.actor("first").ask(BeginRun("0-run", (_started("add", "look"),))))
        await Frozen.reached.wait()
        config = ExecutorConfig("j", Policy(interrupted=recovery))
        second = await node.spawn(Executor, config, name="second")
        if recovery is Recovery.ASK:
            while not (asked := (await second.ask(ListApprovals())).approvals):
                await asyncio.sleep(0.005)
            assert asked[0].kind is ApprovalKind.AGAIN
            await second.ask(AnswerApproval(id=asked[0].id, verdict=Verdict.DENY))
        events = await _followed(node, "second")
        answers = [event for event in events if isinstance(event, ToolAnswered)]
        assert [answer.outcome for answer in answers] == outcomes
        assert ("may or may not have been carried out" in answers[0].text) == (recovery is not Recovery.REPEAT)
        Frozen.go.set()
        await asyncio.gather(asking, return_exceptions=True)
    # The first owner had written that it would call, so when it goes on it does: that is the call which is in doubt.
    assert len(lines(witness)) == (2 if recovery is Recovery.REPEAT else 1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_at_every_write_a_process_comes_back_and_goes_on(
    server: OwnServer, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, num_writes = await _whole(server, tmp_path / "whole", *STEPS)
    for number in range(1, num_writes + 1):
        witness, flag = tmp_path / f"witness-{number}", tmp_path / f"flag-{number}"
        monkeypatch.setenv("DIE_AT", f"{number},{when},{flag}")
        async with company(server.url, witness) as node:
            place = Process(load=(THIS_FILE,), ready_timeout=30)
            config = ExecutorConfig(f"killed-{when}-{number}")
            executor = await node.spawn("agent_play:DyingExecutor", config, name="dying", where=place)
            begin = BeginRun("0-run", (_started(*STEPS),))
            while True:
                try:
                    await executor.ask(begin)
                    break
                except CallboardError:
                    await asyncio.sleep(0.05)  # it was killed before it said that it has the run
            events = await _followed(node, "dying")
            assert plain(events, "0-run") == whole, f"write {number}"
            assert flag.exists(), "it was killed"
        found = lines(witness)
        assert len(found) == len({line.split()[1] for line in found}) == 4, found


async def test_executors_in_processes_share_the_runs_and_one_that_is_killed_comes_back(
    server: OwnServer, tmp_path: Path
) -> None:
    """Runs wait for a person in both; one process is killed; every answer counts, and each run ends once."""
    async with Node(bus=BusOptions(server.url)) as node:
        asking = 'Action: ask_human\nAction Input: {"question": "well?"}'
        answers = (
            ScriptedAnswer(text="Final Answer: fine", match=Match.CONTAINS, pattern="Observation", times=0),
            ScriptedAnswer(text=asking, times=0),
        )
        await node.spawn(Scripted, ScriptedConfig(answers=answers, ordered=False), name="engine")
        agents = await node.spawn(Runs, RunsConfig(executors=2, processes=True), name="agents")
        request = AgentRun(planner="react", task="t", tools=("ask_human",), detach=True)
        runs = [(await agents.ask(msgspec.structs.replace(request, key=f"k{n}"))).run for n in range(6)]
        assert {run[0] for run in runs} == {"0", "1"}
        while len(asked := (await agents.ask(ListApprovals())).approvals) < len(runs):
            await asyncio.sleep(0.01)
        (killed,) = own_workers("agents-0")
        killed.kill()
        for one in asked:
            while True:
                try:
                    await agents.ask(AnswerApproval(id=one.id, verdict=Verdict.APPROVE, text="yes", by="me"))
                    break
                except CallboardError:
                    await asyncio.sleep(0.05)  # its executor is being started again
        for run in runs:
            events = await _followed(node, "agents", run)
            assert isinstance(events[-1], RunEnded)
            assert events[-1].answer == "fine"
