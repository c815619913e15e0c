"""`callboard run`, `runs` and `replay`: start agents, follow them, see what they did, begin again from any place."""

from __future__ import annotations

import getpass
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ...runtime.command import Command, add_bus_options, add_json_option, duration, run_async, tls_of
from ...runtime.errors import UsageError

if TYPE_CHECKING:
    from ...schemas.agent import AgentRun, RunInfo

FAILED = 1


def _configure_run(parser: ArgumentParser) -> None:
    parser.add_argument("planner", nargs="?", help="react, rewoo, autogpt, sequence, supervisor, debate, or another")
    parser.add_argument("task", nargs="?", help="what is to be done; `-`: standard input")
    parser.add_argument("--model", metavar="M", help="a model's name or path, or an actor that answers for one")
    parser.add_argument("--model-address", default="", metavar="ACTOR", help="who answers; --model is then its name")
    parser.add_argument("--tools", default="", metavar="NAMES", help="by commas; `files.*`: a set; `ask_human`: people")
    parser.add_argument(
        "--max-tools",
        type=int,
        default=24,
        metavar="N",
        help="of more, show those that fit best (default: 24)",
    )
    parser.add_argument("--goal", action="append", default=[], metavar="TEXT", help="for autogpt; repeatable")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the planner; repeatable"
    )
    parser.add_argument("--memory", action="store_true", help="keep a long-term memory")
    parser.add_argument("--session", default="", metavar="ID", help="what runs share: tools' state, memory, grants")
    parser.add_argument("--key", default="", help="the same key is the same run")
    parser.add_argument("--detach", action="store_true", help="print the run's id and return")
    sampling = parser.add_argument_group("the model's answers")
    sampling.add_argument("--max-tokens", type=int, default=512, metavar="N")
    sampling.add_argument("--temperature", type=float, default=0.0, metavar="T")
    sampling.add_argument("--seed", type=int, metavar="N")
    sampling.add_argument("--adapter", default="", metavar="NAME")
    limits = parser.add_argument_group("when it ends at the latest")
    limits.add_argument("--max-steps", type=int, default=100, metavar="N", help="model and tool calls (default: 100)")
    limits.add_argument("--budget-tokens", type=int, default=0, metavar="N")
    limits.add_argument("--budget-seconds", type=float, default=0.0, metavar="S", help="of steps, not of waiting")
    limits.add_argument("--budget-cost", type=float, default=0.0, metavar="C")
    may = parser.add_argument_group("what it may do unasked")
    may.add_argument("--allow", action="append", default=[], metavar="TOOL", help="call this without asking; a glob")
    may.add_argument("--deny", action="append", default=[], metavar="TOOL", help="never call this; a glob")
    may.add_argument("--policy", default="", metavar="FILE", help="rules for all runs, if this starts `agents`")
    other = parser.add_argument_group("a run that is there").add_mutually_exclusive_group()
    other.add_argument("--attach", metavar="ID", help="follow it")
    other.add_argument("--show", metavar="ID", help="all of it, as a tree")
    other.add_argument("--pause", metavar="ID", help="begin no further step")
    other.add_argument("--resume", metavar="ID")
    other.add_argument("--cancel", metavar="ID")
    other.add_argument("--redirect", nargs=2, metavar=("ID", "TEXT"), help="say what is wanted now")
    parser.add_argument("--full", action="store_true", help="with --show: prompts and results to their end")
    parser.add_argument("--otel", default="", metavar="URL", help="with --show: send spans to this OTLP collector")
    add_json_option(parser)
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    from .following import attach, control, show

    for what in ("pause", "resume", "cancel"):
        if (run := getattr(args, what)) is not None:
            return _with_agents(args, control, run, what, "", args.json)
    if args.redirect:
        return _with_agents(args, control, args.redirect[0], "redirect", args.redirect[1], args.json)
    if args.show:
        return _with_agents(args, show, args.show, args.json, args.full, args.otel)
    if args.attach:
        return _with_agents(args, attach, args.attach, args.json)
    if not args.planner or not args.task:
        raise UsageError("a run needs a planner and a task", hint='callboard run react "what is 2 + 2?"')
    if args.task == "-":
        args.task = sys.stdin.read()
    return run_async(_start, args)


async def _start(args: Namespace) -> int:
    import msgspec

    from ...runtime.client import connect
    from .following import follow
    from .starting import DIRECTORY, MEMORY, absolute, ensure, ensure_agents, ensure_model

    request = _request(args)
    async with connect(args.nats or "", args.creds or "", state_dir=args.state_dir, tls=tls_of(args)) as bus:
        agents = await ensure_agents(bus, absolute(args.policy))
        if args.memory:
            await ensure(bus, "agent.memory", MEMORY, process=True)
        if args.tools.replace("ask_human", "").strip(", "):
            await ensure(bus, "tool.directory", DIRECTORY)
        address, model = args.model_address, args.model or ""
        if not address:
            address, model = await ensure_model(bus, args)
        request = msgspec.structs.replace(request, model_address=address, model=model, detach=True)
        info: RunInfo = await agents.ask(request)
        if args.detach:
            print(msgspec.json.encode(info).decode() if args.json else info.run)
            return 0
        print(f"run {info.run}", file=sys.stderr, flush=True)
        return await follow(agents, info.run, as_json=args.json)


def _request(args: Namespace) -> AgentRun:
    import json

    from ...schemas.agent import AgentRun
    from ...schemas.agent_parts import Budget, Effect, PolicyRule

    options: dict[str, Any] = {"goals": args.goal} if args.goal else {}
    for option in args.option:
        name, _, value = option.partition("=")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    rules = [PolicyRule(effect=Effect.DENY, tool=tool, why="denied by --deny") for tool in args.deny]
    rules += [PolicyRule(effect=Effect.ALLOW, tool=tool, why="allowed by --allow") for tool in args.allow]
    return AgentRun(
        planner=args.planner,
        task=args.task,
        tools=tuple(name.strip() for name in args.tools.split(",") if name.strip()),
        budget=Budget(args.max_steps, args.budget_tokens, args.budget_seconds, args.budget_cost),
        options=json.dumps(options),
        rules=tuple(rules),
        session=args.session,
        memory="memory" if args.memory else "",
        key=args.key,
        temperature=args.temperature,
        seed=args.seed,
        max_tokens=args.max_tokens,
        adapter=args.adapter,
        max_tools=args.max_tools,
    )


def _with_agents(args: Namespace, what: Any, *rest: Any) -> int:
    async def ask() -> int:
        from ...runtime.client import connect
        from .starting import ensure_agents

        async with connect(args.nats or "", args.creds or "", state_dir=args.state_dir, tls=tls_of(args)) as bus:
            done: Coroutine[Any, Any, int] = what(await ensure_agents(bus), *rest)
            return await done

    return run_async(ask)


run = Command(
    "have an agent do a task, or follow, show, pause or stop one that does",
    _configure_run,
    _run,
    details="The answer goes to standard output, what happens meanwhile to standard error. Ctrl-C leaves the run to\n"
    "go on by itself; `callboard run --attach ID` is back at it. Tools that are not read-only wait for\n"
    "`callboard approve`, unless --allow or a policy lets them be.",
)


# runs


def _configure_runs(parser: ArgumentParser) -> None:
    parser.add_argument("--open", action="store_true", help="only those that have not ended")
    parser.add_argument("-n", type=int, default=20, metavar="N", help="how many, newest first (default: 20)")
    parser.add_argument("--prune", type=duration, metavar="TIME", help="remove those that ended so long ago, 30d say")
    add_json_option(parser)
    add_bus_options(parser)


def _runs(args: Namespace) -> int:
    from .following import list_runs, prune

    if args.prune is not None:
        return _with_agents(args, prune, args.prune, args.json)
    return _with_agents(args, list_runs, args.open, args.n, args.json)


runs = Command("list the runs of agents, or remove old ones", _configure_runs, _runs)


# replay


def _configure_replay(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="ID")
    parser.add_argument("--from", dest="at", default="", metavar="STEP", help="an event's number, or a step's id")
    parser.add_argument("--text", default="", help="what is wanted now")
    parser.add_argument("--planner", default="", help="in place of the run's own")
    parser.add_argument("--model-name", default="", metavar="M", help="the name that goes into Generate")
    parser.add_argument("--options", default="", metavar="JSON", help="of the planner, in place of the run's own")
    parser.add_argument("--detach", action="store_true", help="print the new run's id and return")
    add_json_option(parser)
    add_bus_options(parser)


def _replay(args: Namespace) -> int:
    from .following import replay as replayed

    return _with_agents(args, replayed, args)


replay = Command(
    "begin a run again, from any event of it",
    _configure_replay,
    _replay,
    details="The new run takes over what happened up to there, answers and results included, and goes on by itself.",
)


def whoami() -> str:
    """Who answers, as far as this machine knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
