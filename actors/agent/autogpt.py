"""AutoGPT: goals, and each turn thoughts, self-criticism and one command, which a person approves, edits, answers with
feedback, or stops; or lets go on by itself for some commands (`y -N`). What happened goes into a long-term memory, and
what of it fits comes back each turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import json_repair
import msgspec

from ...schemas.agent_log import (
    ApprovalGiven,
    LoopSeen,
    ModelAnswered,
    ModelFailed,
    ModelRequest,
    Redirected,
    Thought,
    ToolAnswered,
    ToolCalled,
)
from ...schemas.agent_parts import Outcome, Verdict
from ...schemas.serve import ChatMessage, Grammar, GrammarKind
from ...schemas.tool import ToolAnnotations, ToolInfo
from .calls import RECALL, REMEMBER, all_tools, shown_tools
from .effects import cut
from .log import RunLog
from .memory.conversation import Limits, compact
from .planner import Call, Decision, Finish, GiveUp, ModelCall, Note, Planner, ToolCalls
from .turn_grammar import command_grammar
from .wording import MAX_REPAIR, describe

RESULT = "Result of "
SHOWN = 6000
REMEMBERED = 1000
THOUGHTS = ("text", "reasoning", "plan", "criticism")
FINISH = ToolInfo(
    "finish",
    "End, when all goals are reached or cannot be.",
    '{"type":"object","properties":{"answer":{"type":"string"}},"required":["answer"]}',
    '{"type":"string"}',
    ToolAnnotations(read_only=True),
)


class AutoGPTOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`goals`: beside the task. `continuous`: nobody approves commands (rules and policy still hold). `constrained`: a
    grammar holds turns to the format; left open, as much of one as the model can be held to. `max_repairs`: how often
    in a row one that cannot be read is given back. `recall`: how many memories a turn is shown. `context_tokens`: as in
    ReAct. `name`, `role`: who the agent is."""

    goals: tuple[str, ...] = ()
    continuous: bool = False
    constrained: bool | None = None
    max_repairs: int = 3
    recall: int = 5
    context_tokens: int = 6000
    name: str = "an agent"
    role: str = "an assistant that works by itself towards its goals"


class Thoughts(msgspec.Struct):
    text: str = ""
    reasoning: str = ""
    plan: str | list[Any] = ""
    criticism: str = ""


class Command(msgspec.Struct):
    name: str
    args: dict[str, Any] = {}


class Turn(msgspec.Struct):
    """What a turn of the model must be."""

    command: Command
    thoughts: Thoughts = msgspec.field(default_factory=Thoughts)


FORMAT = """Answer with one JSON object and nothing else:
{"thoughts": {"text": "what you think", "reasoning": "why", "plan": "the next steps, short",
"criticism": "what is weak in what you did or plan"}, "command": {"name": "a command", "args": {"its": "arguments"}}}

Take your own criticism to heart in the next turn. A person may refuse a command or comment on it. Finish when you are
done; every command costs."""


class AutoGPT(Planner):
    options = AutoGPTOptions

    def decide(self, log: RunLog) -> Decision:
        options = log.options(AutoGPTOptions)
        last = next((e for e in reversed(log.events) if isinstance(e, _TURNS)), None)
        match last:
            case ModelFailed():
                return GiveUp(f"the model does not answer: {last.text}", code=last.code)
            case ModelAnswered():
                return self._after(log, last, options)
            case ToolAnswered() if log.started.memory and last.step.endswith("_c"):
                return self._remember(log, last)
            case _:
                return self._ask(log, options)

    # A turn of the model

    def _after(self, log: RunLog, answer: ModelAnswered, options: AutoGPTOptions) -> Decision:
        try:
            turn = read_command(answer.text)
        except ValueError:
            if log.turns_without_effect() > options.max_repairs:
                why = f"the model left the format {options.max_repairs + 1} times in a row"
                return GiveUp(why, answer.text.strip(), code="agent.format")
            return self._ask(log, options)
        thoughts, command = turn.thoughts, turn.command
        notes = _notes(thoughts)
        if command.name == FINISH.name:
            return Finish(str(command.args.get("answer", thoughts.text)), notes)
        alone = options.continuous or commands_left(log) > 0
        call = Call(
            command.name,
            json.dumps(command.args, ensure_ascii=False),
            f"{answer.step}_c",
            ask=not alone and command.name in all_tools(log),
            approved=alone,
            text="\n".join(f"{note.kind}: {note.text}" for note in notes if isinstance(note, Thought)),
        )
        return ToolCalls((call,), notes)

    def _remember(self, log: RunLog, done: ToolAnswered) -> ToolCalls:
        """Keep what a command came to, and look for what else is known of it: both at once."""
        step, model = log.steps[done.step], done.step.removesuffix("_c")
        text = f"{step.tool} {cut(step.arguments, 300)}: {cut(done.text, REMEMBERED)}"
        query = f"{log.task} {step.tool} {cut(step.arguments, 300)}"
        limit = log.options(AutoGPTOptions).recall
        return ToolCalls(
            (
                Call(REMEMBER, json.dumps({"text": text}, ensure_ascii=False), f"{model}_r"),
                Call(RECALL, json.dumps({"query": query, "limit": limit}, ensure_ascii=False), f"{model}_q"),
            )
        )

    # What the model is asked

    def _ask(self, log: RunLog, options: AutoGPTOptions) -> ModelCall:
        own = (REMEMBER, RECALL)
        tools = (*(tool for name, tool in shown_tools(log).items() if name not in own), FINISH)
        limits = Limits(options.context_tokens, is_result=lambda message: message.content.startswith(RESULT))
        messages = compact(tuple(self._messages(log, tools, options)), limits).messages
        grammar = _grammar(log, tools, options)
        return ModelCall(ModelRequest(messages=messages, grammar=grammar, purpose="turn"))

    def _messages(self, log: RunLog, tools: tuple[ToolInfo, ...], options: AutoGPTOptions) -> Iterator[ChatMessage]:
        yield ChatMessage(
            "system", f"You are {options.name}, {options.role}.\n\nCommands:\n{describe(tools)}\n\n{FORMAT}"
        )
        goals = "\n".join(f"{number}. {goal}" for number, goal in enumerate((log.task, *options.goals), 1))
        yield ChatMessage("user", f"Goals:\n{goals}")
        wrong, recalled = "", ""
        for event in log.events:
            match event:
                case ModelAnswered():
                    if wrong:
                        yield ChatMessage("user", wrong)
                    yield ChatMessage("assistant", cut(event.text, SHOWN))
                    wrong = _what_is_wrong(event.text)
                case ToolAnswered() if event.step.endswith("_q"):
                    recalled = event.text if event.outcome is Outcome.OK else ""
                case ToolAnswered() if event.step.endswith("_c"):
                    wrong = ""
                    mark = "" if event.outcome is Outcome.OK else f"{event.outcome.value}: "
                    name = log.steps[event.step].tool
                    yield ChatMessage("user", f"{RESULT}{name}: {mark}{cut(event.text, SHOWN)}")
                case LoopSeen():
                    words = f"Note: this command had the same result {event.count} times. Do something else, or finish."
                    yield ChatMessage("user", words)
                case Redirected():
                    wrong = ""
                    yield ChatMessage("user", f"The person who gave you the goals now says: {event.text}")
                case _:
                    continue
        if wrong:
            yield ChatMessage("user", wrong)
        if recalled:
            yield ChatMessage("user", f"What you remember of such things:\n{recalled}")


def _grammar(log: RunLog, tools: tuple[ToolInfo, ...], options: AutoGPTOptions) -> Grammar | None:
    if options.constrained or (options.constrained is None and log.holds_to(GrammarKind.EBNF)):
        return command_grammar(tools, THOUGHTS)
    if options.constrained is None and log.holds_to(GrammarKind.JSON):
        return Grammar(GrammarKind.JSON)
    return None


def read_command(text: str) -> Turn:
    """The turn that a text is, as far as it can be made out. Raises ValueError whose words are for the model."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0:
        raise ValueError("there is no JSON object in what you wrote")
    inner = text[start : end + 1] if end > start else text[start:]
    try:
        return msgspec.json.decode(inner, type=Turn)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        wrong = error
    if len(inner) <= MAX_REPAIR:
        try:
            return msgspec.convert(json_repair.loads(inner), Turn)
        except (msgspec.ValidationError, RecursionError) as error:
            wrong = error
    raise ValueError(str(wrong))


def commands_left(log: RunLog) -> int:
    """Of the commands that a person let run without being asked for each, those that are left."""
    count = 0
    for event in reversed(log.events):
        if isinstance(event, ToolCalled) and event.step.endswith("_c"):
            count += 1
        elif isinstance(event, ApprovalGiven) and event.verdict is Verdict.APPROVE:
            # The command that was approved has been called since, and is none of the further ones.
            return max(event.repeat - max(count - 1, 0), 0)
    return 0


def _what_is_wrong(text: str) -> str:
    try:
        read_command(text)
    except ValueError as error:
        return f"That was not the JSON object that was asked for: {error}. Write the object and nothing else."
    return ""


def _notes(thoughts: Thoughts) -> tuple[Note, ...]:
    plan = thoughts.plan if isinstance(thoughts.plan, str) else "\n".join(map(str, thoughts.plan))
    said = {"thought": thoughts.text, "reasoning": thoughts.reasoning, "plan": plan, "criticism": thoughts.criticism}
    return tuple(Thought(text=text, kind=kind) for kind, text in said.items() if text)


_TURNS = (ModelAnswered, ModelFailed, ToolAnswered, Redirected)
