"""The planners on a scripted model: what they ask, what they do with the answers, and what they make of bad ones."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
from agent_play import Shown, Tools, events_of, until_over
from own_server import OwnServer

from callboard.actors.agent.memory.actor import Memory, MemoryConfig
from callboard.actors.agent.runs import Runs
from callboard.actors.agent.scripted import Scripted, ScriptedConfig
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from callboard.schemas.agent import AgentRun, AnswerApproval, ListApprovals, RunInfo
from callboard.schemas.agent_log import Planned, Thought, ToolAnswered, ToolCalled
from callboard.schemas.agent_parts import AgentTool, Effect, Outcome, PolicyRule, RunStatus, Verdict
from callboard.schemas.scripted import FinishScript, GetScriptedCalls, Match, Part, ScriptedAnswer
from callboard.schemas.serve import Generate, ModelToolCall

pytestmark = pytest.mark.anyio

ALLOW = (PolicyRule(effect=Effect.ALLOW),)


@pytest.fixture
async def node(server: OwnServer, tmp_path: Path) -> AsyncIterator[Node]:
    async with Node(bus=BusOptions(server.url)) as node:
        await node.spawn(Tools, Shown(str(tmp_path / "witness")), name="tools")
        await node.spawn(Runs, name="agents")
        yield node


async def script(node: Node, *answers: str | ScriptedAnswer, ordered: bool = True) -> None:
    said = tuple(ScriptedAnswer(text=answer) if isinstance(answer, str) else answer for answer in answers)
    await node.spawn(Scripted, ScriptedConfig(answers=said, ordered=ordered), name="engine")


async def asked(node: Node) -> list[Generate]:
    """What the model was asked; its script was played to the end, and nothing else was asked."""
    await node.actor("engine").ask(FinishScript())
    return [call.request for call in (await node.actor("engine").ask(GetScriptedCalls())).calls]


def request(planner: str, *, rules: Sequence[PolicyRule] = ALLOW, **fields: object) -> AgentRun:
    options = json.dumps(fields.pop("options", {}))
    known: dict[str, object] = {"tools": ("*",), **fields}
    return msgspec.structs.replace(
        AgentRun(planner=planner, task="the task", options=options, rules=tuple(rules)), **known
    )


def done(info: RunInfo) -> str:
    assert info.status is RunStatus.FINISHED, info
    return info.answer


async def test_react_acts_observes_and_answers(node: Node) -> None:
    await script(
        node,
        'Thought: look first\nAction: look\nAction Input: {"n": 1}\nObservation: made up',
        "Thought: enough\nFinal Answer: seen",
    )
    info = await until_over(node, request("react"))
    assert done(info) == "seen"
    first, second = await asked(node)
    assert first.grammar is not None
    assert first.stop == ("\nObservation:",)
    assert second.messages[-1].content == "Observation: look 1"
    assert "made up" not in second.messages[-2].content
    thoughts = [event.text for event in await events_of(node, info.run) if isinstance(event, Thought)]
    assert thoughts == ["look first", "enough"]


async def test_react_by_the_models_own_tool_calls(node: Node) -> None:
    calls = (ModelToolCall("c1", "look", '{"n": 1}'), ModelToolCall("c2", "look", '{"n": 2}'))
    await script(node, ScriptedAnswer(text="both", tool_calls=calls), "seen both")
    info = await until_over(node, request("react", options={"native": True}))
    assert done(info) == "seen both"
    first, second = await asked(node)
    assert {tool.name for tool in first.tools} >= {"look", "add"}
    assert [(m.role, m.tool_call_id, m.content) for m in second.messages[-2:]] == [
        ("tool", "c1", "look 1"),
        ("tool", "c2", "look 2"),
    ]


async def test_a_model_is_not_told_of_what_the_rules_never_allow_but_may_always_ask(node: Node) -> None:
    await script(node, "Thought: nothing is left\nFinal Answer: so it is")
    below = AgentTool(name="below", description="looks")
    never = (PolicyRule(effect=Effect.DENY, tool="look"), PolicyRule(effect=Effect.DENY, tool="below"))
    await until_over(node, request("react", rules=never, tools=("look", "add", "ask_human"), agents=(below,)))
    (only,) = await asked(node)
    named = {line[2:].partition("(")[0] for line in only.messages[0].content.splitlines() if line.startswith("- ")}
    assert named == {"add", "ask_human"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "you wrote nothing"),
        ("lorem ipsum", "no action and no final answer"),
        ("Action: look\nAction Input: {]", "cannot be read"),
        ("Action: dig\nAction Input: {}", "there is no tool 'dig'"),
        ("Action: raise\nAction Input: {}", "it broke\ntry another"),
    ],
)
async def test_what_a_model_does_wrong_is_told_to_it(node: Node, text: str, says: str) -> None:
    await script(node, text, "Final Answer: well")
    assert done(await until_over(node, request("react"))) == "well"
    _, second = await asked(node)
    assert says in second.messages[-1].content


async def test_a_model_that_never_keeps_the_format_ends_the_run(node: Node) -> None:
    await script(node, *["nonsense"] * 3)
    info = await until_over(node, request("react", options={"max_repairs": 2}))
    assert (info.status, info.answer) == (RunStatus.FAILED, "nonsense")
    assert "left the format" in info.why
    assert len(await asked(node)) == 3


async def test_arguments_of_a_million_characters_are_refused(node: Node) -> None:
    long = json.dumps({"n": "x" * 1_000_000})
    await script(node, ScriptedAnswer(tool_calls=(ModelToolCall("c", "look", long),), text="."), "enough")
    info = await until_over(node, request("react", options={"native": True}))
    assert done(info) == "enough"
    answers = [event for event in await events_of(node, info.run) if isinstance(event, ToolAnswered)]
    assert [answer.code for answer in answers] == ["agent.arguments_too_large"]


async def test_rewoo_runs_what_is_ready_at_once_and_solves(node: Node) -> None:
    plan = 'Plan: a\n#E1 = look[{"n": 1}]\nPlan: b\n#E2=look[{"n": 2}]\nPlan: c\n#E12 = look[{"n": "#E1 and #E2"}]'
    await script(node, plan, "the answer")
    info = await until_over(node, request("rewoo"))
    assert done(info) == "the answer"
    _, solve = await asked(node)
    assert "look look 1 and look 2" in solve.messages[-1].content
    events = await events_of(node, info.run)
    called = [event for event in events if isinstance(event, ToolCalled)]
    assert [event.step for event in called] == ["E1", "E2", "E12"]
    first_answer = next(n for n, event in enumerate(events) if isinstance(event, ToolAnswered))
    assert events.index(called[1]) < first_answer, "both begin before either is over"


async def test_rewoo_plans_anew_what_depends_on_a_failed_step(node: Node) -> None:
    await script(
        node,
        '#E1 = look[{}]\n#E2 = raise[{}]\n#E3 = look[{"n": "#E2"}]',
        '#E4 = look[{"n": "instead of #E1"}]',
        "solved",
    )
    info = await until_over(node, request("rewoo"))
    assert done(info) == "solved"
    _, again, solve = await asked(node)
    assert "#E2 = raise[{}]: (failed) it broke" in again.messages[-1].content
    assert "beginning with #E4" in again.messages[-1].content
    assert "look instead of look" in solve.messages[-1].content
    plans = [event for event in await events_of(node, info.run) if isinstance(event, Planned)]
    assert [planned.replan for planned in plans] == [0, 1]


async def test_rewoo_without_more_plans_says_what_was_not_done(node: Node) -> None:
    await script(node, "#E1 = raise[{}]\n#E2 = look[#E1]", "as far as it goes")
    assert done(await until_over(node, request("rewoo", options={"max_replans": 0}))) == "as far as it goes"
    _, solve = await asked(node)
    assert "#E2 = look[#E1]: not done since #E1 failed" in solve.messages[-1].content


@pytest.mark.parametrize(
    ("bad", "words"),
    [("#E1 = look[#E2]\n#E2 = look[#E1]", "wait for each other"), ("#E1 = look[#E9]", "which no step gives")],
)
async def test_a_plan_that_cannot_be_carried_out_is_given_back(node: Node, bad: str, words: str) -> None:
    await script(node, bad, "#E1 = look[{}]", "good")
    assert done(await until_over(node, request("rewoo"))) == "good"
    _, second, _ = await asked(node)
    assert words in second.messages[-1].content


async def test_rewoo_gives_up_on_a_model_that_cannot_plan(node: Node) -> None:
    await script(node, *["no plan"] * 3)
    info = await until_over(node, request("rewoo"))
    assert (info.status, len(await asked(node))) == (RunStatus.FAILED, 3)


async def test_evidence_cannot_change_what_is_called(node: Node) -> None:
    """A tool's answer goes into the arguments as a text, whatever it looks like."""
    await script(node, '#E1 = LLM[say it]\n#E2 = look[{"n": "#E1"}]', 'x", "path": "/etc', "fine")
    info = await until_over(node, request("rewoo"))
    assert done(info) == "fine"
    called = next(event for event in await events_of(node, info.run) if isinstance(event, ToolCalled))
    assert json.loads(called.arguments) == {"n": 'x", "path": "/etc'}


def command(name: str, **args: object) -> str:
    thoughts = {"text": "t", "reasoning": "r", "plan": "p", "criticism": "too slow"}
    return json.dumps({"thoughts": thoughts, "command": {"name": name, "args": args}})


async def approve(node: Node, **fields: object) -> None:
    """Answers the one thing that waits, once there is one."""
    import anyio

    while not (found := (await node.actor("agents").ask(ListApprovals())).approvals):
        await anyio.sleep(0.01)
    (waiting,) = found
    answer = AnswerApproval(id=waiting.id, verdict=Verdict.APPROVE, by="me")
    await node.actor("agents").ask(msgspec.structs.replace(answer, **fields))


async def test_autogpt_asks_before_each_command_and_goes_on_alone_when_told(node: Node) -> None:
    import anyio

    await script(
        node,
        *(command("look", n=n) for n in range(5)),
        command("finish", answer="all done"),
    )
    results: list[RunInfo] = []
    async with anyio.create_task_group() as group:

        async def play() -> None:
            results.append(await until_over(node, request("autogpt", options={"goals": ["g1", "g2"]})))

        group.start_soon(play)
        await approve(node, arguments='{"n": "edited"}')
        await approve(node, verdict=Verdict.FEEDBACK, text="not that one")
        await approve(node, repeat=2)  # `y -2`: this one, and two more unasked
    (info,) = results
    assert done(info) == "all done"
    calls = await asked(node)
    assert "1. the task\n2. g1\n3. g2" in calls[0].messages[1].content
    assert calls[1].messages[-1].content == "Result of look: look edited"
    assert "a person says: not that one" in calls[2].messages[-1].content
    events = await events_of(node, info.run)
    assert [event.arguments for event in events if isinstance(event, ToolCalled)] == [
        *('{"n": "edited"}', '{"n": 2}', '{"n": 3}', '{"n": 4}'),
    ]
    assert any(isinstance(event, Thought) and event.kind == "criticism" for event in events)


async def test_autogpt_is_stopped_by_a_person(node: Node) -> None:
    import anyio

    await script(node, command("wipe"))
    results: list[RunInfo] = []
    async with anyio.create_task_group() as group:

        async def play() -> None:
            results.append(await until_over(node, request("autogpt")))

        group.start_soon(play)
        await approve(node, verdict=Verdict.DENY, stop=True)
    assert results[0].status is RunStatus.CANCELLED
    assert not any(isinstance(event, ToolCalled) for event in await events_of(node, results[0].run))


async def test_autogpt_remembers_and_recalls(node: Node, tmp_path: Path) -> None:
    await node.spawn(Memory, MemoryConfig(), name="memory")
    await script(node, *(command("look", n=what) for what in ("harbour", "hills")), command("finish", answer="ok"))
    info = await until_over(node, request("autogpt", options={"continuous": True}, memory="memory", session="mine"))
    assert done(info) == "ok"
    *_, third = await asked(node)
    assert "look harbour" in third.messages[-1].content
    assert third.messages[-1].content.startswith("What you remember")


async def test_a_sequence_hands_each_what_the_one_before_made(node: Node) -> None:
    await script(
        node,
        ScriptedAnswer(text="Final Answer: draft", match=Match.CONTAINS, pattern="the task", times=1),
        ScriptedAnswer(text="Final Answer: better", match=Match.CONTAINS, pattern="draft"),
    )
    agents = (AgentTool(name="writer", description="writes"), AgentTool(name="editor", description="edits"))
    info = await until_over(node, request("sequence", agents=agents, tools=()))
    assert done(info) == "better"
    assert info.spent.steps == 4, "two runs of one model call each, called as two tools"
    await asked(node)


async def test_a_debate_is_judged(node: Node) -> None:
    await script(
        node,
        ScriptedAnswer(text="judged", match=Match.CONTAINS, pattern="Weigh these answers"),
        ScriptedAnswer(text="Final Answer: second", match=Match.CONTAINS, pattern="Others answered", times=2),
        ScriptedAnswer(text="Final Answer: first", times=2, match=Match.CONTAINS, pattern="the task", part=Part.ALL),
        ordered=False,
    )
    agents = (AgentTool(name="one", description="a"), AgentTool(name="two", description="b"))
    info = await until_over(node, request("debate", agents=agents, tools=(), options={"rounds": 2}))
    assert done(info) == "judged"
    assert len(await asked(node)) == 5


async def test_a_supervisor_hands_off(node: Node) -> None:
    await script(
        node,
        'Action: worker\nAction Input: {"task": "do it"}',
        "Final Answer: did it",
    )
    agents = (AgentTool(name="worker", description="works", hand_off=True),)
    info = await until_over(node, request("supervisor", agents=agents, tools=()))
    assert done(info) == "did it"
    answers = [event for event in await events_of(node, info.run) if isinstance(event, ToolAnswered)]
    assert answers[0].outcome is Outcome.OK
