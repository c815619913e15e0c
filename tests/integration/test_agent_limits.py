"""Where a run ends by itself, what bad tools do to it, runs within runs, and many runs at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from agent_play import company, events_of, lines, play, until_over
from own_server import OwnServer

from callboard.runtime.event_log import EventLog
from callboard.runtime.node import Node
from callboard.schemas.agent import (
    AgentRun,
    AnswerApproval,
    Control,
    ControlRun,
    GetRun,
    ListApprovals,
    ListRuns,
)
from callboard.schemas.agent_journal import JournalRecord
from callboard.schemas.agent_log import BudgetReached, LoopSeen, ToolAnswered
from callboard.schemas.agent_parts import (
    AgentTool,
    Budget,
    Effect,
    Outcome,
    PolicyRule,
    RunStatus,
    Verdict,
)

pytestmark = pytest.mark.anyio

ALLOW = (PolicyRule(effect=Effect.ALLOW),)


@pytest.fixture
async def node(server: OwnServer, tmp_path: Path) -> AsyncIterator[Node]:
    async with company(server.url, tmp_path / "witness") as node:
        yield node


def team(*steps: str, budget: Budget, own: int = 0, names: tuple[str, ...] = ("helper",)) -> AgentRun:
    """A sequence of agents that each play these steps."""
    options = msgspec.json.encode({"steps": steps}).decode()
    agents = tuple(
        AgentTool(
            name=name,
            description="helps",
            planner="agent_play:Player",
            tools=("*",),
            options=options,
            budget=Budget(own),
        )
        for name in names
    )
    return AgentRun(planner="sequence", task="t", agents=agents, budget=budget, rules=ALLOW)


async def test_steps_tokens_and_seconds_end_a_run_with_what_was_reached(node: Node) -> None:
    info = await until_over(node, play(*["look"] * 9, budget=Budget(3)))
    assert (info.status, info.answer, info.spent.steps) == (RunStatus.STOPPED, "look 2", 3)
    assert info.why == "3 of 3 steps are spent"
    assert any(isinstance(event, BudgetReached) for event in await events_of(node, info.run))
    info = await until_over(node, play(*["look"] * 9, model=True, budget=Budget(0, tokens=5)))
    assert (info.status, "tokens are spent" in info.why) == (RunStatus.STOPPED, True)
    info = await until_over(node, play("look", "hang", "look", budget=Budget(0, seconds=0.05)))
    assert info.status is RunStatus.STOPPED
    assert info.spent.seconds >= 0.05


async def test_of_calls_at_once_only_those_within_the_budget_are_made(node: Node, tmp_path: Path) -> None:
    info = await until_over(node, play("add+add+add", rules=ALLOW, budget=Budget(2)))
    assert info.status is RunStatus.STOPPED
    assert len(lines(tmp_path / "witness")) == 2


async def test_a_child_run_spends_its_parents_budget(node: Node) -> None:
    info = await until_over(node, team(*["look"] * 9, budget=Budget(4)))
    assert info.status is RunStatus.STOPPED, "what the helper spent is spent"
    (child,) = [one for one in (await node.actor("agents").ask(ListRuns())).runs if one.parent == info.run]
    assert (child.status, child.spent.steps) == (RunStatus.STOPPED, 4)
    own = await until_over(node, team(*["look"] * 9, budget=Budget(0), own=2))
    (child,) = [one for one in (await node.actor("agents").ask(ListRuns())).runs if one.parent == own.run]
    assert child.spent.steps == 2
    assert own.spent.steps == 3, "what the child spent, and the call of it"


async def test_a_parent_waits_for_a_child_that_waits_and_neither_is_in_memory(node: Node, tmp_path: Path) -> None:
    request = msgspec.structs.replace(team("wipe", budget=Budget(0), names=("a", "b")), rules=(), detach=True)
    run = (await node.actor("agents").ask(request)).run
    cell: Any = node.actors["agents.executor-0"]
    for _ in ("a", "b"):
        while not (found := (await node.actor("agents").ask(ListApprovals())).approvals) or cell._instance.table.live:
            await asyncio.sleep(0.005)
        assert (await node.actor("agents").ask(GetRun(run))).status is RunStatus.WAITING
        await node.actor("agents").ask(AnswerApproval(id=found[0].id, verdict=Verdict.APPROVE))
        while (await node.actor("agents").ask(ListApprovals())).approvals == found:
            await asyncio.sleep(0.005)
    while (info := await node.actor("agents").ask(GetRun(run))).status is not RunStatus.FINISHED:
        await asyncio.sleep(0.005)
    assert info.answer == "wipe 0"
    assert len(lines(tmp_path / "witness")) == 2


async def test_cancelling_a_run_cancels_its_children(node: Node) -> None:
    request = msgspec.structs.replace(team("wipe", budget=Budget(0)), rules=(), detach=True)
    run = (await node.actor("agents").ask(request)).run
    while not (await node.actor("agents").ask(ListApprovals())).approvals:
        await asyncio.sleep(0.005)
    await node.actor("agents").ask(ControlRun(run, Control.CANCEL))
    assert (await node.actor("agents").ask(ListApprovals())).approvals == ()
    states = {info.status for info in (await node.actor("agents").ask(ListRuns())).runs}
    assert states == {RunStatus.CANCELLED}


async def test_the_same_call_with_the_same_result_is_told_and_then_stopped(node: Node) -> None:
    info = await until_over(node, play(*["look"] * 20, arguments='{"n": 1}'))
    assert info.status is RunStatus.STOPPED
    assert info.why == "look was called 6 times with the same result"
    counts = [event.count for event in await events_of(node, info.run) if isinstance(event, LoopSeen)]
    assert counts == [3, 4, 5]


@pytest.mark.parametrize(
    ("tool", "outcome", "words"),
    [
        ("raise", Outcome.FAILED, "it broke\ntry another"),
        ("big", Outcome.OK, "characters left out"),
        ("gone", Outcome.FAILED, "there is no tool 'gone'; there are: add, "),
    ],
)
async def test_what_a_tool_does_is_an_answer(node: Node, tool: str, outcome: Outcome, words: str) -> None:
    info = await until_over(node, play(tool, "look"))
    assert info.status is RunStatus.FINISHED
    answer = next(event for event in await events_of(node, info.run) if isinstance(event, ToolAnswered))
    assert (answer.outcome, words in answer.text) == (outcome, True)
    assert len(answer.text) < 40_000


async def test_a_tool_that_hangs_is_given_up_at_its_time_limit(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.actors.agent.effects.GRACE_S", -4.9)
    info = await until_over(node, play("hang", "look"))
    assert info.status is RunStatus.FINISHED
    answer = next(event for event in await events_of(node, info.run) if isinstance(event, ToolAnswered))
    assert (answer.outcome, answer.code) == (Outcome.FAILED, "deadline")


async def test_arguments_that_are_no_object_are_refused(node: Node) -> None:
    info = await until_over(node, play("look", arguments='["no"]'))
    answer = next(event for event in await events_of(node, info.run) if isinstance(event, ToolAnswered))
    assert answer.code == "agent.bad_arguments"


async def test_a_model_that_is_not_there_fails_the_run(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.actors.agent.effects.MODEL_PATIENCE_S", 0.1)
    request = msgspec.structs.replace(play(), planner="react", options="{}", model_address="nobody")
    info = await until_over(node, request)
    assert info.status is RunStatus.FAILED
    assert "the model does not answer" in info.why


async def test_200_runs_at_once_lose_no_step(node: Node, tmp_path: Path) -> None:
    requests = [play("put", "look", "put", model=True, rules=ALLOW, key=f"run-{n}") for n in range(200)]
    done = await asyncio.gather(*(until_over(node, request) for request in requests))
    assert {info.status for info in done} == {RunStatus.FINISHED}
    keys = [line.split()[1] for line in lines(tmp_path / "witness")]
    assert len(keys) == len(set(keys)) == 400


async def test_1000_paused_runs_are_no_tasks_and_little_memory(node: Node) -> None:
    agents = node.actor("agents")
    cell: Any = node.actors["agents.executor-0"]
    tasks, before = len(asyncio.all_tasks()), psutil.Process(os.getpid()).memory_info().rss
    for _ in range(10):
        await asyncio.gather(*(agents.ask(play("wipe")) for _ in range(100)))
    while cell._instance.table.live:
        await asyncio.sleep(0.01)
    grown = psutil.Process(os.getpid()).memory_info().rss - before
    assert len((await agents.ask(ListApprovals(), timeout=30)).approvals) == 1000
    assert len(asyncio.all_tasks()) <= tasks + 3
    assert grown < 50 << 20


async def test_a_journal_is_compacted_and_nothing_is_lost(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that are over leave the journal; those that wait, and those under way at that moment, stay whole."""
    monkeypatch.setattr("callboard.actors.agent.journal.COMPACT_BYTES", 4000)
    agents = node.actor("agents")
    cell: Any = node.actors["agents.executor-0"]
    cell._instance.table._journal._compact_over = 4000
    waiting = (await agents.ask(play("wipe"))).run
    done = await asyncio.gather(*(until_over(node, play(*["put"] * 12, rules=ALLOW)) for _ in range(12)))
    before = {run.run: await events_of(node, run.run) for run in done}
    journal = await EventLog.open(node, "agents.0", JournalRecord)
    while (await anext(journal.read())).number == 1:  # its beginning goes when all else is written
        await asyncio.sleep(0.01)
    cell.crash(RuntimeError("killed"))
    while not (found := (await agents.ask(ListApprovals())).approvals):
        await asyncio.sleep(0.01)
    assert {info.run for info in (await agents.ask(ListRuns())).runs} == {waiting, *before}
    for run, events in before.items():
        assert await events_of(node, run) == events
    await agents.ask(AnswerApproval(id=found[0].id, verdict=Verdict.APPROVE))
    while (await agents.ask(GetRun(waiting))).status is not RunStatus.FINISHED:
        await asyncio.sleep(0.01)
    assert len([line for line in lines(tmp_path / "witness") if line.startswith("put")]) == 144
