"""ReAct: a thought, an action, what came of it, and again, until there is an answer. (arXiv:2210.03629)

In text, held to the format by a grammar; or by the model's own tool calls, where it has them.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ...schemas.agent_log import (
    LoopSeen,
    ModelAnswered,
    ModelFailed,
    ModelRequest,
    Redirected,
    Thought,
    ToolAnswered,
)
from ...schemas.agent_parts import Outcome
from ...schemas.serve import ChatMessage, FinishReason, GrammarKind, ModelToolCall
from ...schemas.tool import ToolInfo
from .calls import all_tools, shown_tools
from .effects import cut
from .log import RunLog
from .memory.conversation import Limits, compact
from .planner import Call, Decision, Finish, GiveUp, ModelCall, Note, Planner, ToolCalls
from .react_text import Turn, read_turn
from .turn_grammar import react_grammar
from .wording import Unreadable, describe, offered, read_arguments

OBSERVED = "Observation: "
# Of a result the model is shown so many characters.
SHOWN = 8000


class ReActOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`native`: by the model's own tool calls. `constrained`: a grammar holds the text to the format. Left open, a
    grammar does where the model can be held to one, else its own tool calls where it has them; else it is text that
    nothing holds. `max_repairs`: how often in a row a turn that cannot be read is given back. `context_tokens`: old
    results are shortened, and then left out, beyond it. `system`: said before everything else."""

    native: bool | None = None
    constrained: bool | None = None
    max_repairs: int = 3
    context_tokens: int = 6000
    system: str = ""


FORMAT = """Answer step by step, each turn in exactly one of two forms.

To use a tool:
Thought: what to do next and why
Action: the name of one tool
Action Input: its arguments, as one JSON object

To finish:
Thought: why you know enough
Final Answer: the answer to the task

After an action you are told its result as an observation. Never write an observation yourself."""

NATIVE = "Use the tools you are given where they help. When you know enough, answer the task without calling a tool."


class ReAct(Planner):
    options = ReActOptions

    def decide(self, log: RunLog) -> Decision:
        options = settled(log, log.options(ReActOptions))
        last = next((e for e in reversed(log.events) if isinstance(e, _TURNS)), None)
        match last:
            case ModelFailed():
                return GiveUp(f"the model does not answer: {last.text}", code=last.code)
            case ModelAnswered():
                return self._after(log, last, options)
            case ToolAnswered(outcome=Outcome.OK) if self._hands_off(log, last):
                return Finish(last.text)
            case _:
                return self._ask(log, options)

    def _hands_off(self, log: RunLog, last: ToolAnswered) -> bool:
        tool = log.steps[last.step].tool
        return any(agent.name == tool and agent.hand_off for agent in log.started.agents)

    # A turn of the model

    def _after(self, log: RunLog, answer: ModelAnswered, options: ReActOptions) -> Decision:
        if answer.tool_calls:
            calls = tuple(
                Call(call.name, call.arguments or "{}", f"{answer.step}_{number}")
                for number, call in enumerate(answer.tool_calls)
            )
            return ToolCalls(calls, _thoughts(answer.text))
        if options.native and answer.text.strip():
            return Finish(answer.text.strip())
        turn = read_turn(answer.text)
        notes = _thoughts(turn.thought)
        if turn.answer is not None and turn.answer:
            return Finish(turn.answer, notes)
        try:
            tool = all_tools(log).get(turn.action)
            if turn.action:
                return ToolCalls((Call(turn.action, read_arguments(tool, turn.input), f"{answer.step}_0"),), notes)
        except Unreadable:
            pass
        if log.turns_without_effect() > options.max_repairs:
            why = f"the model left the format {options.max_repairs + 1} times in a row"
            return GiveUp(why, answer.text.strip(), code="agent.format")
        return self._ask(log, options)

    # What the model is asked

    def _ask(self, log: RunLog, options: ReActOptions) -> ModelCall:
        tools = tuple(shown_tools(log).values())
        limits = Limits(options.context_tokens, is_result=_is_result)
        messages = compact(tuple(self._messages(log, tools, options)), limits).messages
        if options.native:
            return ModelCall(ModelRequest(messages=messages, tools=offered(tools), purpose="turn", keep=True))
        return ModelCall(
            ModelRequest(
                messages=messages,
                stop=(f"\n{OBSERVED.strip()}",),
                grammar=react_grammar(tools) if options.constrained else None,
                purpose="turn",
                keep=True,
            )
        )

    def _messages(self, log: RunLog, tools: tuple[ToolInfo, ...], options: ReActOptions) -> Iterator[ChatMessage]:
        how = NATIVE if options.native else f"{FORMAT}\n\nTools:\n{describe(tools)}"
        yield ChatMessage("system", f"{options.system}\n\n{how}" if options.system else how)
        yield ChatMessage("user", f"Task: {log.task}")
        wrong = ""
        for event in log.events:
            match event:
                case ModelAnswered():
                    if wrong:
                        yield ChatMessage("user", wrong)
                    yield ChatMessage("assistant", cut(event.text, SHOWN), tool_calls=_shown_calls(event))
                    wrong = self._what_is_wrong(log, event, options)
                case ToolAnswered():
                    wrong = ""
                    yield self._observation(log, event)
                case LoopSeen():
                    step = log.steps[event.step]
                    yield ChatMessage(
                        "user",
                        f"Note: {step.tool} was called {event.count} times with the same arguments, and gave the same "
                        "result. Do something else, or finish.",
                    )
                case Redirected():
                    wrong = ""
                    yield ChatMessage("user", f"The person who gave you the task now says: {event.text}")
                case _:
                    continue
        if wrong:
            yield ChatMessage("user", wrong)

    def _observation(self, log: RunLog, event: ToolAnswered) -> ChatMessage:
        text = cut(event.text, SHOWN)
        shown = text if event.outcome is Outcome.OK else f"{event.outcome.value}: {text}"
        model, _, number = event.step.rpartition("_")
        called = log.steps[model].answer if model in log.steps else None
        if isinstance(called, ModelAnswered) and called.tool_calls:
            return ChatMessage("tool", shown, tool_call_id=called.tool_calls[int(number)].id)
        return ChatMessage("user", OBSERVED + shown)

    def _what_is_wrong(self, log: RunLog, answer: ModelAnswered, options: ReActOptions) -> str:
        """What to tell the model of a turn that cannot be read; "" where it can."""
        if answer.tool_calls or (options.native and answer.text.strip()):
            return ""
        turn = read_turn(answer.text)
        if turn.answer:
            return ""
        return wrong_with(turn, all_tools(log).get(turn.action), answer)


def settled(log: RunLog, options: ReActOptions) -> ReActOptions:
    """The options with what they leave open decided, by what the run's model can do."""
    able = log.holds_to(GrammarKind.EBNF)
    native, constrained = options.native, options.constrained
    if native is None:
        native = constrained is None and not able and log.calls_tools
    return msgspec.structs.replace(options, native=native, constrained=able if constrained is None else constrained)


def wrong_with(turn: Turn, tool: ToolInfo | None, answer: ModelAnswered) -> str:
    cut_off = " It was cut off: be brief." if answer.finish_reason is FinishReason.LENGTH else ""
    if not answer.text.strip():
        return f"{OBSERVED}you wrote nothing. Write a thought, and then an action or the final answer."
    if not turn.action:
        return f"{OBSERVED}there is no action and no final answer in what you wrote.{cut_off} Keep to the two forms."
    try:
        read_arguments(tool, turn.input)
    except Unreadable as error:
        return f"{OBSERVED}the action input of {turn.action} cannot be read: {error}.{cut_off}"
    return ""


def _shown_calls(answer: ModelAnswered) -> tuple[ModelToolCall, ...]:
    """The calls as the model made them; arguments that are too long to be shown again are left out."""
    return tuple(
        call if len(call.arguments) <= SHOWN else msgspec.structs.replace(call, arguments="{}")
        for call in answer.tool_calls
    )


def _is_result(message: ChatMessage) -> bool:
    return message.role == "tool" or (message.role == "user" and message.content.startswith(OBSERVED))


def _thoughts(text: str) -> tuple[Note, ...]:
    return (Thought(text=text.strip()),) if text.strip() else ()


_TURNS = (ModelAnswered, ModelFailed, ToolAnswered, Redirected)
