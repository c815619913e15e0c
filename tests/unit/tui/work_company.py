"""The company of the tests of agents, approvals and tools: a scripted model, tools of a process of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from tui_support import COMMAND, Daemon

from callboard.actors.agent.scripted import ScriptedConfig
from callboard.runtime.client import Client
from callboard.schemas.agent import AgentRun, AttachRun, RunInfo
from callboard.schemas.agent_parts import RunStatus
from callboard.schemas.scripted import Match, Part, ScriptedAnswer
from callboard.schemas.tool import OfferTools

SCRIPT = "script"
_TOOLS = Path(__file__).with_name("desk_tools.py")

PLAN = """Plan: Count the people of Graz.
#E1 = desk.echo[{"text": "Graz", "number": 291000}]
Plan: Count the people of Linz.
#E2 = desk.echo[{"text": "Linz", "number": 207000}]
Plan: Compare them.
#E3 = desk.echo[{"text": "#E1 and #E2", "number": 2}]
"""
WRITE = (
    "Thought: I write it down.\nAction: desk.write\n"
    'Action Input: {"path": "plan.txt", "content": "first: milk\\nthen: bread\\nlast: tea\\n"}'
)

HELLO = 'Thought: I repeat it.\nAction: desk.echo\nAction Input: {"text": "hello", "number": 7}'


def said(text: str, about: str, times: int = 0, hold: str = "") -> ScriptedAnswer:
    return ScriptedAnswer(text=text, match=Match.CONTAINS, part=Part.ALL, pattern=about, times=times, hold=hold)


DELEGATE = 'Thought: I ask.\nAction: helper\nAction Input: {"task": "count the stars"}'
DIARY = 'Thought: I note it.\nAction: desk.write\nAction Input: {"path": "diary.txt", "content": "a day"}'

ANSWERS = (
    said(HELLO, "say hello", 1),
    said("Thought: That is it.\nFinal Answer: hello, 7 times", "say hello"),
    said(PLAN, "Graz and Linz", 1),
    said("Graz has 84,000 more.", "Graz and Linz"),
    said("Thought: It is done.\nFinal Answer: noted", "diary.txt is written"),
    said(DIARY, "keep my diary"),
    said("Thought: It is done.\nFinal Answer: written", "is written"),
    said("Thought: Then not.\nFinal Answer: nothing was written", "use a pencil"),
    said(WRITE, "shopping list"),
    said(DELEGATE, "delegate this", 1),
    said("Thought: It knows.\nFinal Answer: they say nine", "delegate this"),
    said("Thought: I see them.\nFinal Answer: nine", "count the stars"),
    said("Thought: Let me think.\nFinal Answer: late", "think long", hold="thought"),
)  # fmt: skip


@contextmanager
def desk(daemon: Daemon, notes: Path) -> Iterator[None]:
    """The tools of `desk_tools.py`, over the folder `notes`, as `callboard tool serve` offers them."""
    command = [*COMMAND, "tool", "serve", f"{_TOOLS}:DESK", "--name", "desk"]
    process = subprocess.Popen(
        command, env={**daemon.environment, "DESK_ROOT": str(notes)}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if "Ctrl-C ends it" in line:
            break
    else:
        raise AssertionError("".join(lines))
    yield
    process.terminate()
    process.stderr.read()
    process.wait()
    process.stderr.close()


async def start_agents(bus: Client) -> None:
    await bus.spawn("tool.directory", name="tools")
    await bus.actor("tools").ask(OfferTools("desk"))
    await bus.spawn("agent.scripted", ScriptedConfig(answers=ANSWERS, ordered=False), name=SCRIPT, process=True)
    await bus.spawn("agent.runs", name="agents", process=True)


async def begin(bus: Client, task: str, planner: str = "react") -> RunInfo:
    request = AgentRun(planner=planner, task=task, tools=("desk.*",), model_address=SCRIPT, detach=True)
    return await bus.actor("agents").ask(request)


@contextmanager
def at_work(daemon: Daemon, notes: Path) -> Iterator[None]:
    """Agents with tools; two runs are over."""
    with desk(daemon, notes):

        async def start() -> None:
            async with daemon.connect() as bus:
                await start_agents(bus)
                for task, planner in (("say hello", "react"), ("Compare Graz and Linz", "rewoo")):
                    info = await begin(bus, task, planner)
                    done = await bus.actor("agents").ask(AttachRun(info.run), timeout=30)
                    assert done.status is RunStatus.FINISHED, done

        anyio.run(start)
        yield
