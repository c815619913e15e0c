"""What becomes of a step that was under way when the owner of its run died."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...schemas.agent_log import AnyEvent, ApprovalAsked, ModelCalled
from ...schemas.agent_parts import ApprovalKind, Recovery, RunStatus
from .effects import interrupted
from .log import RunLog, Step
from .planner import ModelCall

if TYPE_CHECKING:
    from .run import Run

MAY_HAVE_RUN = "It was under way when its owner died, and may have been carried out. Approve to repeat it."


def recover(run: Run, step: Step) -> None:
    """A model call and a call that may be repeated are made again; any other is the policy's matter."""
    policy = run.host.policy
    if step.is_model:
        _ask_model_again(run, step)
    elif step.repeatable or policy.interrupted is Recovery.REPEAT:
        run.start_tool(step)
    elif policy.interrupted is Recovery.ASK:
        run.stage(
            ApprovalAsked(
                id=f"{run.id}:{step.id}:{step.attempt + 1}",
                step=step.id,
                kind=ApprovalKind.AGAIN,
                tool=step.tool,
                arguments=step.arguments,
                text=MAY_HAVE_RUN,
                why="the policy says to ask before such a call is repeated",
                expires_at=run.host.now() + policy.expires_s,
            )
        )
    else:
        run.stage(interrupted(step.id, "the owner of the run died"))


def _ask_model_again(run: Run, step: Step) -> None:
    """The planner makes the prompt again, from the events that it made it from before."""
    decision = run.planner.decide(RunLog(run.id, _events_before(run.log, step.id)))
    if isinstance(decision, ModelCall):
        run.start_model(step.id, decision.request)
    else:
        why = f"the planner decided otherwise about {step.id} than before the restart"
        run.end(RunStatus.FAILED, why=why, code="agent.planner")


def _events_before(log: RunLog, step: str) -> list[AnyEvent]:
    """Those that were there when the planner decided on a model call: up to the notes that it made with it."""
    place, event = next((n, e) for n, e in enumerate(log.events) if isinstance(e, ModelCalled) and e.step == step)
    return list(log.events[: place - event.notes])
