"""What is removed of runs that are over, and what the settings say where nobody else does."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import anyio
import pytest
from agent_play import company, events_of, play, until_over
from own_server import OwnServer

from callboard.actors.agent.errors import NoSuchRun
from callboard.actors.agent.runs import JOURNALS, Runs, RunsConfig
from callboard.runtime.event_log import EventLog, list_logs
from callboard.runtime.node import Node
from callboard.runtime.settings import AgentSettings, Settings
from callboard.schemas.agent import (
    AnswerApproval,
    ControlRun,
    GetRun,
    ListApprovals,
    ListRuns,
    Pruned,
    PruneRuns,
    RunInfo,
)
from callboard.schemas.agent_journal import JournalRecord, Moved
from callboard.schemas.agent_parts import AgentTool, Effect, PolicyRule, RunStatus, Verdict

pytestmark = pytest.mark.anyio

ALLOW = (PolicyRule(effect=Effect.ALLOW),)


async def prune(node: Node, before: float = 0.0) -> int:
    done = await node.actor("agents").ask(PruneRuns(before or time.time() + 1))
    assert isinstance(done, Pruned)
    return done.count


async def listed(node: Node) -> set[str]:
    return {info.run for info in (await node.actor("agents").ask(ListRuns())).runs}


async def logs(node: Node) -> set[str]:
    return {name.removeprefix("agents.run.") for name in await list_logs(node) if name.startswith("agents.run.")}


async def parked(node: Node, run: str) -> None:
    """Until the run has moved into its own log and the journal says so: what is written in between moves once more."""
    journal = await EventLog.open(node, f"{JOURNALS}0", JournalRecord)
    with anyio.fail_after(20):
        async with contextlib.aclosing(journal.follow()) as records:
            async for record in records:
                if isinstance(record.value, Moved) and record.value.info.run == run:
                    return


async def test_runs_that_are_over_go_with_their_logs_and_those_that_wait_stay(
    server: OwnServer, tmp_path: Path
) -> None:
    async with company(server.url, tmp_path / "witness") as node:
        waits: RunInfo = await node.actor("agents").ask(play("look", "add"))
        await parked(node, waits.run)  # an approval is asked for
        old = await until_over(node, play("look"))
        await parked(node, old.run)
        middle = time.time()
        new = await until_over(node, play("look"))
        await parked(node, new.run)
        assert await prune(node, middle) == 1
        assert await listed(node) == await logs(node) == {waits.run, new.run}
        with pytest.raises(NoSuchRun):
            await node.actor("agents").ask(GetRun(old.run))
        assert await prune(node) == 1
        (approval,) = (await node.actor("agents").ask(ListApprovals())).approvals
        assert (await listed(node), approval.run) == ({waits.run}, waits.run)
        await node.actor("agents").ask(AnswerApproval(id=approval.id, verdict=Verdict.APPROVE))
    # The journal says the same to the next owner.
    async with company(server.url, tmp_path / "witness") as node:
        assert await listed(node) == {waits.run}
        done = await until_over(node, play("look", key="again"))
        await parked(node, done.run)
        assert await prune(node) >= 1
        again = await until_over(node, play("look", "look", key="again"))
        assert (again.run, again.answer) == (done.run, "look 0 look 1")


async def test_a_run_goes_with_those_below_it_and_not_before_it(server: OwnServer, tmp_path: Path) -> None:
    async with company(server.url, tmp_path / "witness") as node:
        below = AgentTool(name="below", description="looks", planner="agent_play:Player", options='{"steps": ["look"]}')
        request = play("below", arguments='{"task": "look"}', agents=(below,), rules=ALLOW)
        above = await until_over(node, request)
        assert above.status is RunStatus.FINISHED, above
        await parked(node, above.run)
        both = await logs(node)
        assert len(both) == 2
        assert await prune(node, (await node.actor("agents").ask(GetRun(above.run))).ended_at) == 0
        assert await prune(node) == 2
        assert await logs(node) == set()


async def test_settings_say_which_policy_holds_and_how_long_runs_are_kept(server: OwnServer, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('[[rules]]\neffect = "deny"\ntool = "look"\nwhy = "nobody looks"\n')
    settings = Settings(agents=AgentSettings(policy=str(tmp_path / "policy.toml"), keep_days=1e-9))
    async with company(server.url, tmp_path / "witness") as node:
        run = (await until_over(node, play("look"))).run
        await parked(node, run)
        await node.stop("agents")
        node.settings = settings
        await node.spawn(Runs, RunsConfig(), name="agents")
        with anyio.fail_after(20):
            while run in await listed(node):
                await anyio.lowlevel.checkpoint()
        refused = await until_over(node, play("look"))
        assert any("nobody looks" in str(event) for event in await events_of(node, refused.run))


async def test_what_is_cancelled_is_over_as_well(server: OwnServer, tmp_path: Path) -> None:
    from callboard.schemas.agent import Control

    async with company(server.url, tmp_path / "witness") as node:
        waits: RunInfo = await node.actor("agents").ask(play("add"))
        await parked(node, waits.run)
        assert await prune(node) == 0
        await node.actor("agents").ask(ControlRun(waits.run, Control.CANCEL))
        with anyio.fail_after(20):
            while not await prune(node):  # as soon as it has been put away
                await anyio.lowlevel.checkpoint()
        assert await logs(node) == set()
