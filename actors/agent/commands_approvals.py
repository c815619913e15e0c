"""`callboard approvals`, `approve` and `deny`: what agents wait for, and what people say to it."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ...runtime.command import Command, add_bus_options, add_json_option, run_async, tls_of

if TYPE_CHECKING:
    from ...schemas.agent import AnswerApproval

SCOPES = ("once", "run", "session", "forever")


def _configure_list(parser: ArgumentParser) -> None:
    parser.add_argument("--run", default="", metavar="ID", help="of one run")
    add_json_option(parser)
    add_bus_options(parser)


def _list(args: Namespace) -> int:
    return run_async(_list_all, args)


async def _list_all(args: Namespace) -> int:
    import msgspec

    from ...runtime.client import connect
    from ...schemas.agent import ListApprovals
    from .starting import ensure_agents

    async with connect(args.nats or "", args.creds or "", state_dir=args.state_dir, tls=tls_of(args)) as bus:
        found = (await (await ensure_agents(bus)).ask(ListApprovals(args.run))).approvals
    if args.json:
        print(msgspec.json.encode(found).decode())
        return 0
    for one in found:
        left = max(one.expires_at - time.time(), 0) / 3600
        print(f"{one.id}  {one.kind.value}  ({one.why}; {left:.1f} h left)")
        print(f"    {one.text}" if one.kind.value == "question" else f"    {one.tool} {one.arguments}")
    return 0


approvals = Command("list what agents wait for people to decide", _configure_list, _list)


def _add_answer_options(parser: ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="as `callboard approvals` shows it")
    parser.add_argument("--scope", choices=SCOPES, default="once", help="how far the answer reaches (default: once)")
    parser.add_argument("--pattern", default="", metavar="GLOB", help="with --scope: for arguments like this; `*`: any")
    parser.add_argument("--by", default="", metavar="NAME", help="who answers (default: this user)")
    add_json_option(parser)
    add_bus_options(parser)


def _configure_approve(parser: ArgumentParser) -> None:
    _add_answer_options(parser)
    parser.add_argument("--edit", default="", metavar="JSON", help="run it with these arguments instead")
    parser.add_argument("--text", default="", help="the answer to a question")
    parser.add_argument("-y", type=int, default=0, metavar="-N", help="let N more commands of the run be: `-y -5`")


def _approve(args: Namespace) -> int:
    from ...schemas.agent import AnswerApproval
    from ...schemas.agent_parts import Scope, Verdict

    answer = AnswerApproval(
        id=args.id,
        verdict=Verdict.APPROVE,
        arguments=args.edit,
        text=args.text,
        by=args.by,
        scope=Scope(args.scope),
        pattern=args.pattern,
        repeat=abs(args.y),
    )
    return run_async(_answer, args, answer)


approve = Command("let an agent do what it asks to do, as it is or edited", _configure_approve, _approve)


def _configure_deny(parser: ArgumentParser) -> None:
    _add_answer_options(parser)
    parser.add_argument("--why", default="", help="the agent is told")
    parser.add_argument("--feedback", default="", metavar="TEXT", help="do not run it; the agent is to heed this")
    parser.add_argument("--stop", action="store_true", help="and end the run")


def _deny(args: Namespace) -> int:
    from ...schemas.agent import AnswerApproval
    from ...schemas.agent_parts import Scope, Verdict

    answer = AnswerApproval(
        id=args.id,
        verdict=Verdict.FEEDBACK if args.feedback else Verdict.DENY,
        text=args.feedback or args.why,
        by=args.by,
        scope=Scope(args.scope),
        pattern=args.pattern,
        stop=args.stop,
    )
    return run_async(_answer, args, answer)


deny = Command("refuse what an agent asks to do", _configure_deny, _deny)


async def _answer(args: Namespace, answer: AnswerApproval) -> int:
    import msgspec

    from ...runtime.client import connect
    from .commands import whoami
    from .starting import ensure_agents

    answer = msgspec.structs.replace(answer, by=answer.by or whoami())
    async with connect(args.nats or "", args.creds or "", state_dir=args.state_dir, tls=tls_of(args)) as bus:
        done = await (await ensure_agents(bus)).ask(answer)
    if args.json:
        print(msgspec.json.encode(done).decode())
    else:
        print(f"{done.id} {done.verdict.value}" + (" (as before)" if done.repeated else ""))
    return 0
