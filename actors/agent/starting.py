"""Finding the actor `agents` and a model for it, and starting what is not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.errors import NameTaken, NoSuchActor
from ...runtime.settings import load_settings
from ...schemas.agent import ListRuns
from ...schemas.serve_stats import EngineStats, GetStats

if TYPE_CHECKING:
    from argparse import Namespace

    from ...runtime.client import Client
    from ...runtime.refs import Ref

AGENTS = "agents"
ENGINE = "engine"
SCHEDULER = "engine.scheduler"
DIRECTORY = "tools"
MEMORY = "memory"
QUESTIONS = "questions"
# Loading a model takes seconds, or minutes for a large one; an actor that is starting answers when it has.
START_TIMEOUT_S = 150.0
LOOK_AGAIN_S = 1.0


async def ensure_agents(bus: Client, policy: str = "") -> Ref:
    """The actor `agents`, started in a process of its own where there is none, with the board of questions that it puts
    what waits on; `policy` is for that start."""
    agents = bus.actor(AGENTS)
    try:
        await agents.ask(ListRuns(limit=0), START_TIMEOUT_S)
        if policy:
            words = "`agents` runs already and keeps the policy that it was started with: --policy changes nothing"
            print(words, file=sys.stderr, flush=True)
    except NoSuchActor:
        settings = load_settings().agents
        config = {
            "policy": policy or absolute(settings.policy),
            "keep_days": settings.keep_days,
            "questions": settings.questions,
        }
        if settings.questions:
            await ensure(bus, "question.board", QUESTIONS)
        await _spawn(bus, "agent.runs", json.dumps(config), AGENTS)
    return agents


def absolute(path: str) -> str:
    """The path as the process that reads it finds it; "" for none."""
    return str(Path(path).expanduser().absolute()) if path else ""


async def ensure(bus: Client, kind: str, name: str, *, process: bool = False) -> None:
    """An actor of that kind and name, by default in the daemon."""
    if all(info.address != name for info in await bus.actors(name)):
        await _spawn(bus, kind, "{}", name, process=process)


async def ensure_model(bus: Client, args: Namespace) -> tuple[str, str]:
    """(address, name) of what answers `Generate` for `--model`: an actor of that name, or the company's engine."""
    from ...runtime.command import settings_of
    from ..models.store import is_path

    wanted = args.model or ""
    if wanted and not is_path(wanted) and "." not in wanted and wanted != ENGINE:
        if any(info.address == wanted for info in await bus.actors(wanted)):
            return wanted, ""
    try:
        await _engine(bus)
    except NoSuchActor:
        settings = settings_of(args, model=wanted or None)
        print("starting the engine ...", file=sys.stderr, flush=True)
        await _spawn(bus, "serve.engine", json.dumps({"model": settings.model, **settings.engine}), ENGINE)
    return SCHEDULER, ""


async def _engine(bus: Client) -> EngineStats:
    return await bus.actor(ENGINE).ask(GetStats(), START_TIMEOUT_S)


async def _spawn(bus: Client, kind: str, config: str, name: str, *, process: bool = True) -> None:
    try:
        await bus.spawn(kind, config, name=name, process=process)
    except NameTaken:  # somebody else does the same: it is there, or will be in a moment
        await _there(bus, name)


async def _there(bus: Client, name: str) -> None:
    import anyio

    with anyio.fail_after(START_TIMEOUT_S):
        while all(info.address != name for info in await bus.actors(name)):
            # Its process has not joined the bus yet, which is news when it does; what came since the look is not lost.
            await bus.node.require_links().peers.news(LOOK_AGAIN_S)
