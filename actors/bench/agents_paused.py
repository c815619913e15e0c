"""What runs hold that wait for a person, in a process that has done nothing else."""

from __future__ import annotations

import asyncio

import anyio
import psutil

from ...runtime.refs import Ref
from ...schemas.agent import AttachRun, GetRun, ListApprovals
from ...schemas.agent_log import ApprovalAsked
from ...schemas.agent_parts import RunStatus
from .agents_company import TIMEOUT_S, asking, company
from .counter import resident_kb
from .errors import AgentsFailed

RUNS = 1000
# Started at once, as people would not, but a benchmark may.
AT_ONCE = 50
# One run that waits makes the machinery whole; what more runs need is measured.
FIRST = 20
SETTLE_S = 20.0
QUIET_S = 0.5


async def paused_runs(url: str) -> dict[str, float]:
    """MB (10^6 bytes) of memory that 1,000 waiting runs take, and the tasks and processes that are there for them."""
    async with company(url) as node:
        agents = node.actor("agents")
        await _begin(agents, FIRST)
        tasks, processes, kb = await _num_tasks(), _num_children(), resident_kb()
        await _begin(agents, RUNS)
        waiting = (await agents.ask(ListApprovals(), TIMEOUT_S)).approvals
        if len(waiting) != RUNS + FIRST:
            raise AgentsFailed(f"{len(waiting)} of {RUNS + FIRST} runs wait for an approval")
        del waiting
        more_tasks = await _num_tasks() - tasks
        more_kb = resident_kb() - kb
        return {
            "mb": more_kb * 1024 / 1e6,
            "tasks": more_tasks,
            "processes": _num_children() - processes,
        }


async def _num_tasks() -> int:
    """How many tasks there are once those that put the last runs away have ended: when none ends for a while."""
    with anyio.move_on_after(SETTLE_S):
        while True:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            ended, _ = await asyncio.wait(others, timeout=QUIET_S, return_when=asyncio.FIRST_COMPLETED)
            if not ended:
                break
    return len(asyncio.all_tasks())


def _num_children() -> int:
    return len(psutil.Process().children(recursive=True))


async def _begin(agents: Ref, count: int) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def begin() -> None:
        async with room:
            run = (await agents.ask(asking(), TIMEOUT_S)).run
            async with agents.stream(AttachRun(run), timeout=TIMEOUT_S) as entries:
                async for entry in entries:
                    if isinstance(entry.event, ApprovalAsked):
                        break
            info = await agents.ask(GetRun(run), TIMEOUT_S)
            if info.status is not RunStatus.WAITING:
                raise AgentsFailed(f"a run that should wait is {info.status}: {info.why}")

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(begin())
