"""What a step does to the world: one model call, one tool call, one memory request. Each ends in an event.

Nothing here reads or writes a run; cancelling one ends the request at the other side too.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

import msgspec

from ...runtime.errors import (
    ActorStopped,
    CallboardError,
    DeadlineExceeded,
    Disconnected,
    NoSuchActor,
    NotReachable,
)
from ...runtime.node import Node
from ...schemas.agent import Recall, Remember
from ...schemas.agent_log import ModelAnswered, ModelFailed, ModelRequest, RunStarted, ToolAnswered
from ...schemas.agent_parts import Outcome
from ...schemas.serve import Generate, ModelToolCall
from ...schemas.tool import CallTool, Media, OpenTool, ToolInfo

DIRECTORY = "tools"
# Of a tool's answer a run keeps so many characters, and of its JSON so many; of a model's so many.
KEEP_TEXT = 32_000
KEEP_VALUE = 64_000
KEEP_ANSWER = 200_000
KEEP_CALLS = 64
KEEP_MEDIA = 8
# A replica that was killed is back within this; a model that is not makes the run fail.
MODEL_PATIENCE_S = 60.0
MODEL_TIMEOUT_S = 600.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
OPEN_TIMEOUT_S = 150.0
MEMORY_TIMEOUT_S = 30.0
# Beside the tool's own time limit, which it answers for itself.
GRACE_S = 5.0
# How often a repeatable call is made again when the tool's process ended under it.
TOOL_ATTEMPTS = 3

PASSING = (ActorStopped, Disconnected, NoSuchActor, NotReachable)
_BUSY = {
    "actor.mailbox_full",
    "serve.overloaded",
    "serve.replica_lost",
    "upstream.busy",
    "upstream.unavailable",
    "upstream.unreachable",
}


def cut(text: str, room: int) -> str:
    """The text, or its beginning and end around a word on what is left out."""
    if len(text) <= room:
        return text
    tail = room // 8
    head = room - tail
    return f"{text[:head]}\n[... {len(text) - head - tail} characters left out ...]\n{text[-tail:]}"


def generate_request(request: ModelRequest, started: RunStarted, run: str) -> Generate:
    return Generate(
        messages=request.messages,
        prompt=request.prompt,
        model=started.model,
        max_tokens=request.max_tokens or started.max_tokens,
        temperature=started.temperature,
        seed=started.seed,
        stop=request.stop,
        grammar=request.grammar,
        adapter=started.adapter,
        tools=request.tools,
        session=run if request.keep else "",
        client=run.partition(".")[0],
    )


async def ask_model(
    node: Node, request: ModelRequest, started: RunStarted, run: str, step: str, seconds: float
) -> ModelAnswered | ModelFailed:
    """The model's answer; asked again while its actor is away or has no room, up to `MODEL_PATIENCE_S`."""
    message = generate_request(request, started, run)
    began = time.monotonic()
    pause = FIRST_PAUSE_S
    timeout = min(seconds or MODEL_TIMEOUT_S, MODEL_TIMEOUT_S)
    while True:
        try:
            done = await node.actor(started.model_address).ask(message, timeout)
        except CallboardError as error:
            spent = time.monotonic() - began
            passes = isinstance(error, PASSING) or error.code in _BUSY
            if passes and spent + pause < min(MODEL_PATIENCE_S, timeout):
                await asyncio.sleep(pause)  # the pause itself: nothing says when a model is back
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            return ModelFailed(step=step, code=error.code, text=str(error), hint=error.hint, seconds=spent)
        return ModelAnswered(
            step=step,
            text=cut(done.text, KEEP_ANSWER),
            finish_reason=done.finish_reason,
            usage=done.usage,
            tool_calls=_kept_calls(done.tool_calls),
            cost=done.cost,
            seconds=time.monotonic() - began,
        )


def _kept_calls(calls: tuple[ModelToolCall, ...]) -> tuple[ModelToolCall, ...]:
    """As many and as long as a run can keep; arguments that are cut are refused when they are to be used."""
    calls = calls[:KEEP_CALLS]
    room = max(KEEP_ANSWER // max(len(calls), 1), 1000) + 1
    return tuple(
        call if len(call.arguments) <= room else msgspec.structs.replace(call, arguments=call.arguments[:room])
        for call in calls
    )


class Tools:
    """Where tools are, as the directory said last."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._known: dict[str, ToolInfo] = {}

    async def open(self, name: str) -> ToolInfo:
        """Raises what the directory raises."""
        if (known := self._known.get(name)) is None:
            known = await self._node.actor(DIRECTORY).ask(OpenTool(name), OPEN_TIMEOUT_S)
            self._known[name] = known
        return known

    def forget(self, name: str) -> None:
        self._known.pop(name, None)


@dataclass(frozen=True, slots=True)
class ToolWork:
    """A call to be made. `key` names it for good, also when it is made again."""

    step: str
    tool: str
    arguments: str
    key: str
    session: str
    media: tuple[Media, ...]
    repeatable: bool
    seconds: float


async def call_tool(node: Node, tools: Tools, work: ToolWork) -> ToolAnswered:
    """Call a tool. What is wrong with it is an answer as well: see `docs/agents.md` for which."""
    began = time.monotonic()
    attempt = 0
    while True:
        attempt += 1
        try:
            info = await tools.open(work.tool)
            timeout = min(work.seconds or math.inf, info.timeout + GRACE_S)
            message = CallTool(work.arguments, work.media, work.session, work.key)
            result = await node.actor(info.address).ask(message, timeout)
        except NoSuchActor as error:  # it was not there, so nothing ran
            tools.forget(work.tool)
            if attempt < TOOL_ATTEMPTS:
                continue
            return _failed(work, error, began)
        except (ActorStopped, Disconnected) as error:
            tools.forget(work.tool)
            if work.repeatable and attempt < TOOL_ATTEMPTS:
                continue
            if work.repeatable:
                return _failed(work, error, began)
            return interrupted(work.step, f"the tool ended under the call ({error})", began)
        except DeadlineExceeded as error:
            answer = _failed(work, error, began)
            if work.repeatable:
                return answer
            said = f"{answer.text}. Whether the call was carried out is not known"
            return msgspec.structs.replace(answer, text=said)
        except CallboardError as error:
            return _failed(work, error, began)
        return ToolAnswered(
            step=work.step,
            outcome=Outcome.OK,
            text=cut(result.text, KEEP_TEXT),
            value=result.value if len(result.value) <= KEEP_VALUE else "",
            media=result.media[:KEEP_MEDIA],
            seconds=time.monotonic() - began,
        )


def _failed(work: ToolWork, error: CallboardError, began: float) -> ToolAnswered:
    text = f"{error}\n{error.hint}" if error.hint else str(error)
    return ToolAnswered(
        step=work.step,
        outcome=Outcome.FAILED,
        text=cut(text, KEEP_TEXT),
        code=error.code,
        seconds=time.monotonic() - began,
    )


def interrupted(step: str, why: str, began: float = 0.0) -> ToolAnswered:
    """A call of which nobody knows whether it was carried out."""
    return ToolAnswered(
        step=step,
        outcome=Outcome.INTERRUPTED,
        text=f"Interrupted: {why}. The call may or may not have been carried out, and was not repeated. "
        "Find out before you do it again.",
        code="agent.interrupted",
        seconds=time.monotonic() - began if began else 0.0,
    )


class _Text(msgspec.Struct):
    text: str = ""
    query: str = ""
    limit: int = 5


async def use_memory(node: Node, address: str, work: ToolWork) -> ToolAnswered:
    """`remember` and `recall`, at the actor that keeps the run's memory."""
    began = time.monotonic()
    try:
        said = msgspec.json.decode(work.arguments, type=_Text)
        memory = node.actor(address)
        if work.tool == "remember":
            await memory.ask(Remember(said.text, work.session, work.key), MEMORY_TIMEOUT_S)
            text = "remembered"
        else:
            found = await memory.ask(Recall(said.query or said.text, work.session, said.limit), MEMORY_TIMEOUT_S)
            text = "\n".join(f"- {entry.text}" for entry in found.entries)
    except msgspec.DecodeError as error:
        return ToolAnswered(step=work.step, outcome=Outcome.FAILED, text=str(error), code="agent.bad_arguments")
    except CallboardError as error:
        return _failed(work, error, began)
    return ToolAnswered(step=work.step, outcome=Outcome.OK, text=cut(text, KEEP_TEXT), seconds=time.monotonic() - began)
