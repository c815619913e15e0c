"""What the tests of agents share: tools with a witness outside, small planners, a company on a bus.

A witness is a file to which a tool adds a line for each side effect, synced, so it counts what happened whatever dies.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from callboard.actors.agent.executor import Executor
from callboard.actors.agent.log import RunLog
from callboard.actors.agent.planner import Ask, Call, Decision, Finish, ModelCall, Planner, ToolCalls
from callboard.actors.agent.run import Run
from callboard.actors.agent.runs import Runs, RunsConfig
from callboard.actors.agent.scripted import Scripted, ScriptedConfig
from callboard.actors.tools.errors import NoSuchTool
from callboard.runtime.actor import Actor, handler
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import CallboardError
from callboard.runtime.node import Node
from callboard.runtime.supervision import Restart
from callboard.schemas.agent import AgentRun, RunInfo
from callboard.schemas.agent_log import AnyEvent, ModelRequest, Thought
from callboard.schemas.scripted import ScriptedAnswer
from callboard.schemas.serve import ChatMessage
from callboard.schemas.tool import (
    CallTool,
    ListTools,
    OpenTool,
    ToolAnnotations,
    ToolInfo,
    ToolList,
    ToolProgress,
    ToolResult,
)

MODULE = "agent_play"
THIS_FILE = str(Path(__file__))


class ToolBroken(CallboardError):
    code = "tool.broken"


def info(name: str, *, read_only: bool = False, destructive: bool = True, idempotent: bool = False) -> ToolInfo:
    notes = ToolAnnotations("", read_only, destructive, idempotent)
    return ToolInfo(name, f"does {name}", '{"type":"object"}', '{"type":"string"}', notes, "tools", timeout=5.0)


TOOLS = {
    "look": info("look", read_only=True, destructive=False, idempotent=True),
    "add": info("add", destructive=False),
    "put": info("put", destructive=False, idempotent=True),
    "wipe": info("wipe"),
    "raise": info("raise", read_only=True),
    "hang": info("hang", read_only=True),
    "big": info("big", read_only=True),
    "die": info("die", destructive=False),
    "wait": info("wait", destructive=False),
}


class Shown(msgspec.Struct, frozen=True):
    witness: str = ""


class Tools(Actor[Shown]):
    """The directory and its tools in one: it answers for all of them."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.calls: list[CallTool] = []
        self.waiting = asyncio.Event()

    @handler(concurrent=True)
    async def list_all(self, message: ListTools) -> ToolList:
        return ToolList(tuple(TOOLS.values()))

    @handler(concurrent=True)
    async def open(self, message: OpenTool) -> ToolInfo:
        if message.name not in TOOLS:
            raise NoSuchTool(f"no tool {message.name}")
        return msgspec.structs.replace(TOOLS[message.name], address=f"{self.address}.{message.name}")

    async def started(self) -> None:
        for name in TOOLS:
            await self.spawn(OneTool, OneToolConfig(name, self.config.witness), name=name)


class OneToolConfig(msgspec.Struct, frozen=True):
    name: str
    witness: str


class OneTool(Actor[OneToolConfig]):
    """`{"n": ...}` says which call it is."""

    gate = asyncio.Event()

    @handler(concurrent=True)
    async def call(self, message: CallTool) -> AsyncIterator[ToolProgress | ToolResult]:
        arguments: dict[str, Any] = msgspec.json.decode(message.arguments)
        name = self.config.name
        if name == "raise":
            raise ToolBroken("it broke", hint="try another")
        if name == "hang":
            await asyncio.Event().wait()
        if name == "die":
            os.kill(os.getpid(), 9)
        known = name == "put" and any(f" {message.key} " in line for line in lines(Path(self.config.witness)))
        if name in ("add", "put", "wipe", "wait") and not known:
            self._witness(f"{name} {message.key} {message.arguments}")
        if name == "wait":
            await OneTool.gate.wait()
        text = "x" * (16 << 20) if name == "big" else f"{name} {arguments.get('n', '')}"
        yield ToolResult(msgspec.json.encode(text).decode(), text)

    def _witness(self, line: str) -> None:
        with open(self.config.witness, "a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


class Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tools to call, one after the other; those joined by `+` at once. `model`: a thought before each."""

    steps: tuple[str, ...] = ()
    model: bool = False
    ask: bool = False
    arguments: str = ""


class Player(Planner):
    """Calls what its options say, in order."""

    options = Steps

    def decide(self, log: RunLog) -> Decision:
        options = log.options(Steps)
        done = sum(step.id.startswith("s") for step in log.steps.values())
        asked = len(log.model_answers)
        turn = len({step.id.partition("_")[0] for step in log.steps.values() if step.id.startswith("s")})
        if turn == len(options.steps):
            return Finish(" ".join(step.text for step in log.results()))
        if options.model and asked == turn:
            said = ChatMessage("user", f"{log.task} {turn}")
            return ModelCall(ModelRequest(messages=(said,)), (Thought(text=f"turn {turn}"),))
        names = options.steps[turn].split("+")
        if names == ["ask"]:
            return ToolCalls((Call("ask_human", '{"question": "what now?"}', id=f"s{turn}_0"),))
        calls = [
            Call(name, options.arguments or f'{{"n":{done + k}}}', id=f"s{turn}_{k}", ask=options.ask)
            for k, name in enumerate(names)
        ]
        return ToolCalls(tuple(calls))


class DyingExecutor(Executor):
    """The executor in a process that kills itself once, as `kill -9` would, at a chosen write."""

    writes = 0

    async def write(self, run: Run, first: int, events: Sequence[AnyEvent]) -> None:
        number, when, flag = os.environ["DIE_AT"].split(",")
        self.writes += 1
        dies = self.writes == int(number)
        if dies and when == "before":
            die_once(Path(flag))
        await super().write(run, first, events)
        if dies:
            die_once(Path(flag))


def die_once(flag: Path) -> None:
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), 9)


class Asker(Planner):
    def decide(self, log: RunLog) -> Decision:
        return Finish(log.results()[-1].text) if log.results() else Ask("your name?")


def play(*steps: str, **fields: Any) -> AgentRun:
    """A run of `Player`."""
    options = Steps(steps, **{name: fields.pop(name) for name in ("model", "ask", "arguments") if name in fields})
    fields = {"tools": ("*", "ask_human"), "detach": True, **fields}
    return AgentRun(planner=f"{MODULE}:Player", task="play", options=msgspec.json.encode(options).decode(), **fields)


@asynccontextmanager
async def company(url: str, witness: Path, policy: str = "") -> AsyncIterator[Node]:
    """A node with the tools and the actor `agents`."""
    async with Node(bus=BusOptions(url), allow=(MODULE,)) as node:
        await node.spawn(Tools, Shown(str(witness)), name="tools")
        script = (ScriptedAnswer(text="go on", times=0),)
        await node.spawn(Scripted, ScriptedConfig(answers=script), name="engine")
        await node.spawn(Runs, RunsConfig(policy=policy), name="agents", restart=Restart.PERMANENT)
        yield node


async def until_over(node: Node, request: AgentRun, timeout: float = 30) -> RunInfo:
    return await node.actor("agents").ask(msgspec.structs.replace(request, detach=False), timeout=timeout)


async def events_of(node: Node, run: str) -> list[AnyEvent]:
    from callboard.schemas.agent import AttachRun

    async with node.actor("agents").stream(AttachRun(run, 0, follow=False)) as entries:
        return [entry.event async for entry in entries]


def plain(events: Sequence[AnyEvent], run: str) -> list[Any]:
    """What events say, without times and without the run's id."""
    said = msgspec.json.encode(events).decode().replace(run, "RUN")
    return [
        {name: value for name, value in event.items() if name not in ("at", "seconds", "expires_at")}
        for event in msgspec.json.decode(said)
    ]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
