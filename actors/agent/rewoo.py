"""ReWOO: one call of the model plans everything, the steps run as soon as what they need is there, and another call
answers from plans and evidence. (arXiv:2305.18323)

A step that fails is evidence too, and says so. What depends on it is planned anew, up to a bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from ...schemas.agent_log import (
    ModelAnswered,
    ModelFailed,
    ModelRequest,
    Planned,
    PlanStep,
    Redirected,
    StepReady,
)
from ...schemas.agent_parts import Outcome
from ...schemas.serve import ChatMessage, Grammar, GrammarKind
from ...schemas.tool import ToolInfo
from .calls import all_tools, shown_tools
from .effects import cut
from .log import RunLog, Step
from .plan import BadPlan, after, check_plan, fill_in, read_plan, references
from .planner import Call, Decision, Finish, GiveUp, ModelCall, Planner, ToolCalls, Wait
from .wording import Unreadable, describe, read_arguments

# The model itself as a tool of the plan.
LLM = "LLM"
# Of a piece of evidence, in the input of another step and before the solver.
FILLED_IN = 4000
SHOWN = 4000


class ReWOOOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`max_replans`: how often what depends on a failed step is planned anew. `max_repairs`: how often a plan that
    cannot be carried out is given back. `constrained`: a grammar holds plans to the format; left open, where the model
    can be held to one."""

    max_replans: int = 2
    max_repairs: int = 2
    constrained: bool | None = None


PLAN = """Make a plan for the task. For each step write two lines:

Plan: what the step is for
#E1 = tool[input]

Number the steps #E1, #E2 and so on. An input may name the evidence of other steps, as #E1, which is put in its place.
Steps that do not need each other run at the same time. Write nothing else, and do not answer the task."""

SOLVE = "Answer the task from the plan and the evidence. Evidence may be missing or wrong. Give the answer alone."


class ReWOO(Planner):
    eager = True
    options = ReWOOOptions

    def decide(self, log: RunLog) -> Decision:
        options = log.options(ReWOOOptions)
        last = next((e for e in reversed(log.events) if isinstance(e, ModelAnswered | ModelFailed)), None)
        if isinstance(last, ModelFailed) and not last.step.startswith("E"):
            return GiveUp(f"the model does not answer: {last.text}", code=last.code)
        if isinstance(last, ModelAnswered) and last.step.startswith("solve"):
            return Finish(last.text.strip())
        table = _Table(log)
        if table.is_asking:
            return Wait()
        if (answer := table.unread) is not None:
            return self._take_plan(log, table, answer, options)
        if not log.plans:
            return self._plan(log, table, [], options)
        if ready := table.ready:
            return self._begin(log, table, ready, ())
        if log.open_steps:
            return Wait()
        lost = table.lost
        if (lost or table.redirected) and table.replans < options.max_replans:
            return self._plan(log, table, [], options)
        return self._solve(log, table)

    # Planning

    def _take_plan(self, log: RunLog, table: _Table, answer: ModelAnswered, options: ReWOOOptions) -> Decision:
        try:
            steps = read_plan(answer.text)
            check_plan(steps, [*all_tools(log), LLM], table.given)
            if again := {step.id for step in steps} & set(table.given):
                raise BadPlan(f"{', '.join(sorted(again))} is evidence that is there; number new steps on from it")
        except BadPlan as error:
            if table.attempts > options.max_repairs:
                if log.plans:
                    return self._solve(log, table)
                return GiveUp(f"the model made no plan that can be carried out: {error}", code="agent.plan")
            return self._plan(log, table, [(answer.text, str(error))], options)
        planned = Planned(steps=steps, replan=len(log.plans))
        ready = [step for step in steps if all(need in table.given for need in step.needs)]
        return self._begin(log, table, ready, (planned,))

    def _plan(self, log: RunLog, table: _Table, wrong: list[tuple[str, str]], options: ReWOOOptions) -> ModelCall:
        tools = shown_tools(log)
        known = f"{describe(tools.values())}\n- {LLM}(text): ask a language model, which knows only what you give it"
        task = "\n".join([log.task, *(f"The person now says: {event.text}" for event in log.redirects)])
        messages = [ChatMessage("system", f"{PLAN}\n\nTools:\n{known}"), ChatMessage("user", f"Task: {task}")]
        if log.plans:
            number = max((int(name[1:]) for name in table.steps), default=0) + 1
            messages.append(
                ChatMessage(
                    "user",
                    f"So far:\n{table.shown()}\n\nSome of this failed. Plan again what is left to do, another way, "
                    f"beginning with #E{number}. You may use the evidence that is there.",
                )
            )
        for text, why in wrong:
            messages += [ChatMessage("assistant", text), ChatMessage("user", f"This plan cannot be used: {why}.")]
        held = log.holds_to(GrammarKind.EBNF) if options.constrained is None else options.constrained
        grammar = plan_grammar(tuple(sorted({*tools, LLM}))) if held else None
        id_ = f"plan{len(table.plan_answers) + 1}"
        return ModelCall(ModelRequest(messages=tuple(messages), grammar=grammar, purpose="plan"), id=id_)

    # Carrying out

    def _begin(self, log: RunLog, table: _Table, ready: list[PlanStep], notes: tuple[Planned, ...]) -> Decision:
        marks = tuple(StepReady(step=table.step_id(step.id, notes)) for step in ready)
        asking = [step for step in ready if step.tool == LLM]
        if len(asking) == len(ready):
            step = asking[0]
            said = ChatMessage("user", fill_in(step.input, table.texts()))
            request = ModelRequest(messages=(said,), purpose="evidence")
            return ModelCall(request, (*notes, marks[0]), table.step_id(step.id, notes))
        tools = all_tools(log)
        calls = tuple(
            Call(step.tool, self._arguments(tools[step.tool], step, table), table.step_id(step.id, notes))
            for step in ready
            if step.tool != LLM
        )
        return ToolCalls(calls, (*notes, *(mark for mark, step in zip(marks, ready, strict=True) if step.tool != LLM)))

    def _arguments(self, tool: ToolInfo, step: PlanStep, table: _Table) -> str:
        """Evidence goes into the texts of the arguments, never into their JSON, so none can change what is called."""
        texts = table.texts()
        try:
            written = read_arguments(tool, step.input)
        except Unreadable:
            return json.dumps({"input": fill_in(step.input, texts)}, ensure_ascii=False)
        return json.dumps(_filled(json.loads(written), texts), ensure_ascii=False)

    def _solve(self, log: RunLog, table: _Table) -> ModelCall:
        task = "\n".join([log.task, *(f"The person now says: {event.text}" for event in log.redirects)])
        messages = (
            ChatMessage("system", SOLVE),
            ChatMessage("user", f"Task: {task}\n\n{table.shown()}\n\nAnswer:"),
        )
        return ModelCall(ModelRequest(messages=messages, purpose="solve"), id=log.next_id("solve"))

    def reached(self, log: RunLog) -> str:
        return _Table(log).shown()


class _Table:
    """What the log says of plans and evidence. A step of the n-th plan after the first is `E3r1` in the log.

    `steps`: of all plans, by the name of their evidence, the later plan's where two have one name.
    """

    def __init__(self, log: RunLog) -> None:
        self.log = log
        self.steps: dict[str, PlanStep] = {}
        self._ids: dict[str, str] = {}
        for number, planned in enumerate(log.plans):
            begun = {name for name in self.steps if self._ids[name] in log.steps}
            self.steps = {name: step for name, step in self.steps.items() if name in begun}
            for step in planned.steps:
                self.steps[step.id] = step
                self._ids[step.id] = _id(step.id, number)
        self.plan_answers = [answer for answer in log.model_answers if answer.step.startswith("plan")]

    def step_id(self, name: str, notes: tuple[Planned, ...] = ()) -> str:
        return _id(name, len(self.log.plans)) if notes else self._ids[name]

    def _step(self, name: str) -> Step | None:
        return self.log.steps.get(self._ids[name])

    @property
    def is_asking(self) -> bool:
        return any(step.startswith(("plan", "solve")) for step in self.log.open_steps)

    @property
    def unread(self) -> ModelAnswered | None:
        """A plan that the model wrote last, and of which nothing was made."""
        for event in reversed(self.log.events):
            if isinstance(event, Planned | Redirected):
                return None
            if isinstance(event, ModelAnswered) and event.step.startswith("plan"):
                return event
        return None

    @property
    def attempts(self) -> int:
        """Plans that the model wrote since the last that could be used."""
        count = 0
        for event in reversed(self.log.events):
            if isinstance(event, Planned):
                break
            count += isinstance(event, ModelAnswered) and event.step.startswith("plan")
        return count

    @property
    def replans(self) -> int:
        return max(len(self.log.plans) - 1, len(self.plan_answers) - 1)

    @property
    def given(self) -> dict[str, Step]:
        """Steps that are over, and gave something."""
        found = {name: step for name in self.steps if (step := self._step(name)) is not None}
        return {name: step for name, step in found.items() if step.outcome is Outcome.OK}

    @property
    def failed(self) -> list[str]:
        return [
            name
            for name in self.steps
            if (step := self._step(name)) is not None and not step.is_open and step.outcome is not Outcome.OK
        ]

    @property
    def ready(self) -> list[PlanStep]:
        given = self.given
        return [
            step
            for name, step in self.steps.items()
            if self._step(name) is None and all(need in given for need in step.needs)
        ]

    @property
    def lost(self) -> set[str]:
        """Steps that cannot begin, since what they need failed."""
        return {name for name in after(list(self.steps.values()), self.failed) if self._step(name) is None}

    @property
    def redirected(self) -> bool:
        """Whether a person said something after the last plan."""
        last = next((e for e in reversed(self.log.events) if isinstance(e, Planned | Redirected)), None)
        return isinstance(last, Redirected)

    def texts(self) -> dict[str, str]:
        return {name: cut(step.text, FILLED_IN) for name, step in self.given.items()}

    def shown(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for name, step in self.steps.items():
            yield f"Plan: {step.plan}"
            done = self._step(name)
            if done is None:
                failed = [need for need in references(step.input) if need in {*self.failed, *self.lost}]
                why = f" since {', '.join('#' + need for need in failed)} failed" if failed else ""
                yield f"#{name} = {step.tool}[{step.input}]: not done{why}"
            elif done.is_open:
                yield f"#{name} = {step.tool}[{step.input}]: under way"
            else:
                mark = "" if done.outcome is Outcome.OK else f"({done.outcome.value if done.outcome else ''}) "
                yield f"#{name} = {step.tool}[{step.input}]: {mark}{cut(done.text, SHOWN)}"


def _id(name: str, plan: int) -> str:
    return f"{name}r{plan}" if plan else name


def _filled(value: Any, texts: dict[str, str]) -> Any:
    match value:
        case str():
            return fill_in(value, texts)
        case dict():
            return {key: _filled(part, texts) for key, part in value.items()}
        case list():
            return [_filled(part, texts) for part in value]
        case _:
            return value


def plan_grammar(tools: tuple[str, ...]) -> Grammar:
    """One to eight steps of the two lines, with the tools that there are."""
    names = " | ".join(json.dumps(name) for name in tools)
    return Grammar(
        GrammarKind.EBNF,
        "root ::= step{1,8}\n"
        'step ::= "Plan: " [^\\n]{1,200} "\\n#E" [1-9] [0-9]? " = " tool "[" [^\\n\\]]{1,300} "]\\n"\n'
        f"tool ::= {names}\n",
    )
