"""What the commands on runs do once they are on the bus: follow, show, control, list, fork."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from typing import Any

import msgspec

from ...runtime.errors import UsageError
from ...runtime.refs import Ref
from ...schemas.agent import AttachRun, Control, ControlRun, ForkRun, GetRun, ListRuns, PruneRuns, RunInfo
from ...schemas.agent_log import AnyEvent
from ...schemas.agent_parts import RunStatus
from .log import RunLog
from .show import drawn, line, short, tree

# Thousands of logs, each deleted by itself.
PRUNE_TIMEOUT_S = 600.0


def _as_json(message: Any) -> str:
    return msgspec.json.encode(message).decode()


async def follow(agents: Ref, run: str, *, as_json: bool, after: int = 0) -> int:
    """What happens goes to standard error, the answer to standard output."""
    async with agents.stream(AttachRun(run, after)) as entries:
        async for entry in entries:
            if as_json:
                print(_as_json(entry), file=sys.stderr, flush=True)
            elif text := line(entry.event):
                print(text, file=sys.stderr, flush=True)
        info = entries.result
    print(_as_json(info) if as_json else info.answer, flush=True)
    return 0 if info.status is RunStatus.FINISHED else 1


async def attach(agents: Ref, run: str, as_json: bool) -> int:
    return await follow(agents, run, as_json=as_json)


async def control(agents: Ref, run: str, what: str, text: str, as_json: bool) -> int:
    from .commands import whoami

    info = await agents.ask(ControlRun(run, Control(what), text, whoami()))
    print(_as_json(info) if as_json else f"{info.run} {info.status.value}")
    return 0


async def list_runs(agents: Ref, open_only: bool, limit: int, as_json: bool) -> int:
    found = (await agents.ask(ListRuns(open_only, limit))).runs
    if as_json:
        print(_as_json(found))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "planner", "status", "steps", "tokens", "task", box=None)
    for info in found:
        tokens = info.spent.prompt_tokens + info.spent.completion_tokens
        table.add_row(
            info.run, info.planner, info.status.value, str(info.spent.steps), str(tokens), short(info.task)[:60]
        )
    Console().print(table)
    return 0


async def prune(agents: Ref, seconds: float, as_json: bool) -> int:
    done = await agents.ask(PruneRuns(time.time() - seconds), PRUNE_TIMEOUT_S)
    print(_as_json(done) if as_json else f"{done.count} runs removed")
    return 0


async def events_of(agents: Ref, run: str) -> tuple[RunInfo, list[AnyEvent]]:
    events: list[AnyEvent] = []
    async with agents.stream(AttachRun(run, 0, follow=False)) as entries:
        async for entry in entries:
            events.append(entry.event)
        return entries.result, events


async def whole(agents: Ref, run: str) -> dict[str, Any]:
    """A run and its child runs as one tree."""
    info, events = await events_of(agents, run)
    log = RunLog(run, events)
    below = {step.id: await whole(agents, step.child) for step in log.steps.values() if step.child}
    return tree(info, log, below)


async def show(agents: Ref, run: str, as_json: bool, full: bool, collector: str) -> int:
    if collector:
        from .otel_export import export_run

        count = await export_run(agents, run, collector, content=full)
        print(f"{count} spans sent", file=sys.stderr)
        return 0
    found = await whole(agents, run)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    for row in drawn(found, full=full):
        print(row)
    return 0


async def replay(agents: Ref, args: Namespace) -> int:
    from .commands import whoami

    at = 0
    if args.at:
        at = int(args.at) if args.at.isdecimal() else await _end_of_step(agents, args.run, args.at)
    info = await agents.ask(
        ForkRun(
            run=args.run,
            at=at,
            text=args.text,
            planner=args.planner,
            model=args.model_name,
            options=args.options,
            by=whoami(),
        )
    )
    if args.detach:
        print(_as_json(info) if args.json else info.run)
        return 0
    print(f"run {info.run}", file=sys.stderr, flush=True)
    return await follow(agents, info.run, as_json=args.json, after=info.events)


async def _end_of_step(agents: Ref, run: str, step: str) -> int:
    """The number of the last event about a step."""
    await agents.ask(GetRun(run))
    _, events = await events_of(agents, run)
    numbers = [number for number, event in enumerate(events, 1) if getattr(event, "step", "") == step]
    if not numbers:
        known = ", ".join(dict.fromkeys(getattr(event, "step", "") for event in events if getattr(event, "step", "")))
        raise UsageError(f"the run {run} has no step '{step}'", hint=f"there are: {known or 'none'}")
    return numbers[-1]
