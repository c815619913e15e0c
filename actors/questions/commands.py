"""`callboard questions`: what the company asks of people, and their answers."""

from __future__ import annotations

import getpass
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ...runtime.command import Command, add_bus_options, add_json_option, run_async

if TYPE_CHECKING:
    from ...runtime.client import Client
    from ...schemas.question import Answered, Outcome, Question, QuestionList


def _configure(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="[show|answer|refuse|dismiss|watch]")
    parser.set_defaults(do=_list)
    parser.add_argument("--all", action="store_true", help="also those that are over")

    show = actions.add_parser("show", argument_default=SUPPRESS, help="one question, whole")
    answer = actions.add_parser("answer", argument_default=SUPPRESS, help="accept, as proposed or with a value")
    refuse = actions.add_parser("refuse", argument_default=SUPPRESS, help="say no")
    dismiss = actions.add_parser("dismiss", argument_default=SUPPRESS, help="put it away without deciding")
    watch = actions.add_parser("watch", argument_default=SUPPRESS, help="print a line when one opens or closes")
    for one, do in ((show, _show), (answer, _answer), (refuse, _refuse), (dismiss, _dismiss)):
        one.add_argument("id", metavar="ID", help="as `callboard questions` shows it")
        one.set_defaults(do=do)
    answer.add_argument("value", nargs="*", default=[], metavar="VALUE", help="JSON, or KEY=VALUE for an object's keys")
    for one in (answer, refuse, dismiss):
        one.add_argument("--note", default="", help="why, in words")
        one.add_argument("--by", default="", metavar="NAME", help="who answers (default: this user)")
    watch.set_defaults(do=_watch)
    for one in (show, answer, refuse, dismiss, watch):
        add_json_option(one)
        add_bus_options(one)
    add_json_option(parser)
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    return run_async(args.do, args)


async def _ask_board(bus: Client, *, id: str = "", closed: bool = False) -> QuestionList:
    """What the board has; nothing where nobody has asked anything yet, and so there is no board."""
    from ...runtime.errors import NoSuchActor
    from ...schemas.question import ListQuestions, QuestionList
    from .board import ADDRESS
    from .errors import NoSuchQuestion

    try:
        return await bus.actor(ADDRESS).ask(ListQuestions(id=id, closed=closed))
    except NoSuchActor:
        if id:
            raise NoSuchQuestion(f"there is no question {id}") from None
        return QuestionList(())


async def _list(args: Namespace) -> int:
    from ...runtime.commands_actors import client_of, to_json
    from ...runtime.tables import print_table

    async with client_of(args) as bus:
        found = await _ask_board(bus, closed=args.all)
    if args.json:
        print(to_json(found))
        return 0
    if not found.questions:
        print("no questions are open", file=sys.stderr)
        return 0
    ends = {answered.id: answered.outcome.value for answered in found.answers}
    rows: list[tuple[str, ...]] = [("ID", "STATE", "KIND", "ASKER", "QUESTION")]
    for one in found.questions:
        words = " ".join(one.text.split())
        rows.append(
            (one.id, ends.get(one.id, "open"), one.kind or "-", one.asker, words[:100] + "…" * (len(words) > 100))
        )
    print_table(rows)
    return 0


async def _show(args: Namespace) -> int:
    from ...runtime.commands_actors import client_of, to_json

    async with client_of(args) as bus:
        found = await _ask_board(bus, id=args.id, closed=True)
    if args.json:
        print(to_json(found))
        return 0
    _print(found.questions[0], found.answers[0] if found.answers else None)
    return 0


def _print(question: Question, answered: Answered | None) -> None:
    import time

    print(question.text)
    rows = {
        "asked by": question.asker,
        "kind": question.kind,
        "asked": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(question.asked)),
        "until": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(question.expires)) if question.expires else "",
        "visit": question.link,
        "details": question.details,
        "schema": question.schema if question.schema != "{}" else "",
        "proposal": question.proposal,
    }
    if answered is not None:
        rows |= {"ended": answered.outcome.value, "by": answered.by, "note": answered.note, "value": answered.value}
    for name, text in rows.items():
        if text:
            print(f"  {name:10}{text}")


async def _answer(args: Namespace) -> int:
    from ...schemas.question import Outcome

    return await _send(args, Outcome.ACCEPTED, _value(args.value))


async def _refuse(args: Namespace) -> int:
    from ...schemas.question import Outcome

    return await _send(args, Outcome.REFUSED, "")


async def _dismiss(args: Namespace) -> int:
    from ...schemas.question import Outcome

    return await _send(args, Outcome.CANCELLED, "")


def _value(words: list[str]) -> str:
    """JSON from the command line: as it is, or an object of KEY=VALUE, where what is no JSON is a text."""
    import json

    from ...runtime.errors import UsageError

    if not words:
        return ""
    if len(words) == 1:
        try:
            json.loads(words[0])
            return words[0]
        except ValueError:
            if "=" not in words[0]:
                raise UsageError(
                    f"'{words[0]}' is no JSON", hint="write a text in quotes: '\"words\"', or KEY=VALUE"
                ) from None
    value: dict[str, object] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals):
            raise UsageError(f"'{word}' is not KEY=VALUE")
        try:
            value[key] = json.loads(text)
        except ValueError:
            value[key] = text
    return json.dumps(value)


async def _send(args: Namespace, outcome: Outcome, value: str) -> int:
    from ...runtime.commands_actors import client_of, to_json
    from ...runtime.errors import NoSuchActor
    from ...schemas.question import AnswerQuestion
    from .board import ADDRESS
    from .errors import NoSuchQuestion

    message = AnswerQuestion(args.id, outcome, value, args.note, args.by or _user())
    async with client_of(args) as bus:
        try:
            answered = await bus.actor(ADDRESS).ask(message)
        except NoSuchActor:
            raise NoSuchQuestion(f"there is no question {args.id}") from None
    if args.json:
        print(to_json(answered))
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        return ""


async def _watch(args: Namespace) -> int:
    from ...runtime.commands_actors import client_of, to_json
    from ...schemas.question import QuestionClosed, QuestionOpened

    async with client_of(args) as bus, bus.listen("topic.questions.*", QuestionOpened, QuestionClosed) as news:
        print("waiting for questions; Ctrl-C ends it", file=sys.stderr)
        async for _, message in news:
            if args.json:
                print(to_json(message), flush=True)
            elif isinstance(message, QuestionOpened):
                print(f"{message.id} asked by {message.asker}: {message.text}", flush=True)
            else:
                print(f"{message.id} {message.outcome.value} {message.by}".rstrip(), flush=True)
    return 0


questions = Command("list what the company asks of people, and answer it", _configure, _run)
