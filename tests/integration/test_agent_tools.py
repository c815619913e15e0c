"""Agents and the company's own tools: found in the directory, started for the call, and gone in its middle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from agent_play import events_of, until_over
from board import install
from toolbox import THIS_FILE

from callboard.actors.agent.runs import Runs
from callboard.actors.agent.scripted import Scripted, ScriptedConfig
from callboard.actors.tools.directory import ADDRESS, Directory
from callboard.runtime.node import Node
from callboard.schemas.agent import AgentRun
from callboard.schemas.agent_log import ToolAnswered
from callboard.schemas.agent_parts import Effect, Outcome, PolicyRule, RunStatus
from callboard.schemas.scripted import GetScriptedCalls, ScriptedAnswer
from callboard.schemas.serve import ModelToolCall

pytestmark = pytest.mark.anyio

ANY = PolicyRule(effect=Effect.ALLOW)


@pytest.fixture
async def company(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """The tools that come with it, and a set of a package of its own."""
    site = install(tmp_path / "site", "boxes", "")
    shutil.copy(THIS_FILE, site / "box.py")
    (site / "boxes-1.0.dist-info" / "entry_points.txt").write_text("[callboard.tools]\nbox = box\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    for name in ("CACHE", "STATE"):
        monkeypatch.setenv(f"CALLBOARD_{name}_DIR", str(tmp_path / name.lower()))
    await node.spawn(Directory, name=ADDRESS)
    await node.spawn(Runs, name="agents")
    return node


async def scripted(node: Node, *answers: str | ModelToolCall) -> None:
    script = [
        ScriptedAnswer(text=one) if isinstance(one, str) else ScriptedAnswer(tool_calls=(one,)) for one in answers
    ]
    await node.spawn(Scripted, ScriptedConfig(answers=tuple(script)), name="engine")


def acts(tool: str, **arguments: object) -> str:
    return f"Thought: I use it.\nAction: {tool}\nAction Input: {json.dumps(arguments)}\n"


async def answered(node: Node, run: str) -> list[ToolAnswered]:
    return [event for event in await events_of(node, run) if isinstance(event, ToolAnswered)]


async def test_it_computes_and_runs_code_in_the_sandbox(company: Node) -> None:
    await scripted(
        company,
        acts("calculator", expression="7 * 8"),
        acts("sandbox.python", code="print(56 + 1)"),
        "Thought: done.\nFinal Answer: 57\n",
    )
    request = AgentRun(planner="react", task="?", tools=("calculator", "sandbox.python"), rules=(ANY,))
    done = await until_over(company, request, timeout=40)
    assert (done.status, done.answer) == (RunStatus.FINISHED, "57"), done
    first, second = await answered(company, done.run)
    assert (first.outcome, first.text) == (Outcome.OK, "56")
    assert second.outcome is Outcome.OK
    assert "57" in second.text


async def test_the_models_own_calls_reach_the_tools_too(company: Node) -> None:
    await scripted(company, ModelToolCall("call00001", "calculator", '{"expression": "2 ** 70"}'), "A large number.")
    request = AgentRun(planner="react", task="?", tools=("calculator",), options='{"native": true}')
    done = await until_over(company, request)
    assert (done.status, done.answer) == (RunStatus.FINISHED, "A large number."), done
    (only,) = await answered(company, done.run)
    assert only.text == str(2**70)


async def test_a_tool_whose_process_dies_in_mid_call_is_not_called_again_behind_anybodys_back(
    company: Node, tmp_path: Path
) -> None:
    """Nobody knows what it had done by then. The model is told, and the set is there again for the next call."""
    await scripted(company, acts("box.die"), acts("box.add", a=2, b=3), "Thought: ok.\nFinal Answer: 5\n")
    request = AgentRun(planner="react", task="?", tools=("box.die", "box.add"), rules=(ANY,))
    done = await until_over(company, request, timeout=40)
    assert (done.status, done.answer) == (RunStatus.FINISHED, "5"), done
    first, second = await answered(company, done.run)
    assert first.outcome in (Outcome.FAILED, Outcome.INTERRUPTED)
    assert first.text
    assert (second.outcome, second.text) == (Outcome.OK, "5")


async def test_a_model_is_told_of_the_tools_that_fit_its_task_and_may_be_called(company: Node) -> None:
    await scripted(company, acts("sandbox.shell", command="ls"), "Thought: so be it.\nFinal Answer: none\n")
    never = PolicyRule(effect=Effect.DENY, tool="sandbox.*", why="no code")
    request = AgentRun(
        planner="react",
        task="Convert units: calculate how many centimetres three feet are, or run Python",
        tools=("*", "box.add"),
        rules=(never, ANY),
        max_tools=3,
    )
    done = await until_over(company, request, timeout=50)
    assert (done.status, done.answer) == (RunStatus.FINISHED, "none"), done
    (first, _) = (await company.actor("engine").ask(GetScriptedCalls())).calls
    said, grammar = first.request.messages[0].content, first.request.grammar
    named = [line[2:].partition("(")[0] for line in said.splitlines() if line.startswith("- ")]
    # What was named by itself, and then what fits; nothing of the sandbox, which no call of is allowed.
    assert len(named) == 3
    assert named[0] == "box.add"
    assert "calculator" in named
    assert not any(name.startswith("sandbox") for name in named)
    assert grammar is not None
    assert "sandbox" not in grammar.text
    # It is called all the same, and refused as any call that the rules deny.
    (refused,) = await answered(company, done.run)
    assert (refused.outcome, "no code" in refused.text) == (Outcome.DENIED, True), refused
