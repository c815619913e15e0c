"""Several agents on one task. Each is a run of its own, and a tool of the run that brings them together.

`sequence`: one after the other, each given what the one before it made. `debate`: all at once, round by round, each
shown what the others said; then the model judges. `supervisor`: a model hands out the work, which is ReAct over agents.
"""

from __future__ import annotations

import json

import msgspec

from ...schemas.agent_log import ModelAnswered, ModelFailed, ModelRequest
from ...schemas.serve import ChatMessage
from .effects import cut
from .log import RunLog, Step
from .planner import Call, Decision, Finish, GiveUp, ModelCall, NoOptions, Planner, ToolCalls
from .react import ReAct

SHOWN = 6000


class Sequence(Planner):
    """The run's agents in their order. The last one's answer is the run's."""

    options = NoOptions

    def decide(self, log: RunLog) -> Decision:
        agents, done = log.started.agents, log.results()
        if not agents:
            return GiveUp("a sequence needs agents", code="agent.invalid")
        if done and done[-1].code:
            return GiveUp(f"{done[-1].tool} did not finish: {done[-1].text}", code=done[-1].code)
        if len(done) == len(agents):
            return Finish(done[-1].text)
        task = f"{log.task}\n\n{done[-1].tool} made of it:\n{cut(done[-1].text, SHOWN)}" if done else log.task
        return ToolCalls((_to(agents[len(done)].name, task, f"a{len(done) + 1}"),))


class DebateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rounds: int = 2


class Debate(Planner):
    options = DebateOptions

    def decide(self, log: RunLog) -> Decision:
        agents, rounds = log.started.agents, log.options(DebateOptions).rounds
        if not agents:
            return GiveUp("a debate needs agents", code="agent.invalid")
        if isinstance(last := _last_of_model(log), ModelAnswered):
            return Finish(last.text.strip())
        if isinstance(last, ModelFailed):
            return GiveUp(f"the model does not answer: {last.text}", code=last.code)
        done = log.results()
        number = len(done) // len(agents)
        said = done[-len(agents) :]
        if number < rounds:
            calls = tuple(
                _to(agent.name, self._task(log, agent.name, said), f"r{number + 1}_{place}")
                for place, agent in enumerate(agents)
            )
            return ToolCalls(calls)
        words = f"{log.task}\n\n{_all(said)}\n\nWeigh these answers and give the best one, alone."
        return ModelCall(ModelRequest(messages=(ChatMessage("user", words),), purpose="judge"))

    def _task(self, log: RunLog, name: str, said: list[Step]) -> str:
        others = [step for step in said if step.tool != name]
        if not said:
            return log.task
        return f"{log.task}\n\nOthers answered:\n{_all(others)}\n\nAnswer again; keep what is right, say what is wrong."


class Supervisor(ReAct):
    """ReAct whose tools are the run's agents (and its tools, if it has any)."""


def _to(agent: str, task: str, id_: str) -> Call:
    return Call(agent, json.dumps({"task": task}, ensure_ascii=False), id_)


def _all(steps: list[Step]) -> str:
    return "\n\n".join(f"{step.tool}: {cut(step.text, SHOWN)}" for step in steps)


def _last_of_model(log: RunLog) -> ModelAnswered | ModelFailed | None:
    return next((e for e in reversed(log.events) if isinstance(e, ModelAnswered | ModelFailed)), None)
