"""How a run stands, and what of it waits for people, as messages."""

from __future__ import annotations

from ...schemas.agent import Approval, RunInfo
from ...schemas.agent_log import ApprovalAsked, RunEnded
from ...schemas.agent_parts import OPEN_RUNS, RunStatus, Spent
from .log import RunLog


def info_of(
    log: RunLog, num_events: int, spent: Spent, *, ended: RunEnded | None = None, parked: bool = False
) -> RunInfo:
    """`spent`: with child runs under way. `parked`: nothing goes on by itself, so a run is not running.

    `ended`: the event of its end once that is written; what is not written has not happened.
    """
    started = log.started
    ended = log.ended if parked else ended
    status = RunStatus.RUNNING if log.ended is not None and ended is None else log.status
    if parked and status is RunStatus.RUNNING:
        status = RunStatus.WAITING
    return RunInfo(
        run=log.run,
        planner=started.planner,
        task=started.task,
        status=status,
        events=num_events,
        spent=spent,
        answer=ended.answer if ended else "",
        why=ended.why if ended else "",
        approvals=tuple(log.approvals) if status in OPEN_RUNS else (),
        parent=started.parent,
        session=started.session,
        forked_from=started.forked_from,
        forked_at=started.forked_at,
        began_at=started.at,
        ended_at=ended.at if ended else 0.0,
    )


def approval_of(run: str, asked: ApprovalAsked) -> Approval:
    return Approval(
        id=asked.id,
        run=run,
        step=asked.step,
        kind=asked.kind,
        tool=asked.tool,
        arguments=asked.arguments,
        address=asked.address,
        text=asked.text,
        why=asked.why,
        asked_at=asked.at,
        expires_at=asked.expires_at,
    )


def approvals_of(log: RunLog) -> tuple[Approval, ...]:
    return tuple(approval_of(log.run, asked) for asked in log.approvals.values())
