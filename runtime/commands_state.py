"""`callboard state`: what actors and logs have on the disk, a backup of all of it, the way back, and removing some."""

from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .command import Command, add_bus_options, add_json_option, run_async
from .commands_actors import client_of, to_json
from .errors import UsageError
from .sizes import format_size
from .tables import print_table

if TYPE_CHECKING:
    from .state_backup import Moved, Progress
    from .state_survey import Survey


def _configure(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="[export|import|rm]")
    parser.set_defaults(do=_list)
    # What is given before the action holds unless it is given after it too: hence no defaults of the actions' own.

    export = actions.add_parser(
        "export", argument_default=SUPPRESS, help="write all of it to one file, while the company runs"
    )
    export.add_argument("file", type=Path, metavar="FILE", help="replaced at once when all is written")
    export.set_defaults(do=_export)

    import_ = actions.add_parser("import", argument_default=SUPPRESS, help="bring back what such a file holds")
    import_.add_argument("file", type=Path, metavar="FILE", help="what `callboard state export` wrote")
    import_.add_argument(
        "--replace", action="store_true", default=False, help="in the place of what is stored under the same names"
    )
    import_.set_defaults(do=_import)

    rm = actions.add_parser("rm", argument_default=SUPPRESS, help="remove one actor's state or one log, for good")
    rm.add_argument("name", help="as `callboard state` shows it")
    rm.add_argument("--kind", choices=("state", "log"), default=None, help="which, where both are there")
    rm.add_argument("--yes", "-y", action="store_true", default=False, help="do not ask")
    rm.set_defaults(do=_rm)
    for one in (export, import_):
        one.add_argument("--quiet", "-q", action="store_true", default=False, help="no progress")
    for one in (export, import_, rm):
        add_json_option(one)
        add_bus_options(one)
    add_json_option(parser)
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    return run_async(args.do, args)


async def _list(args: Namespace) -> int:
    from .state_survey import survey

    async with client_of(args) as bus:
        found = await survey(bus.node.jetstream)
    if args.json:
        print(to_json(found))
    else:
        _print(found)
    if found.importing:
        print("an import is under way or was cut short: import its file again", file=sys.stderr)
    return 0


def _print(found: Survey) -> None:
    if not (found.states or found.logs or found.blobs.objects):
        print("nothing is stored")
        return
    rows: list[tuple[str, ...]] = [("STATE", "KIND", "EPOCH", "SAVES", "REVISION", "SIZE", "AGE")]
    for state in found.states:
        counts = (str(state.epoch), str(state.saves), str(state.revision))
        rows.append((state.name, state.kind, *counts, format_size(state.bytes), _span(state.age)))
    print_table(rows)
    print()
    rows = [("LOG", "EVENTS", "FIRST", "LAST", "EPOCH", "SIZE", "AGE")]
    for log in found.logs:
        numbers = (log.events, log.first if log.events else "-", log.last if log.events else "-", log.epoch)
        rows.append((log.name, *map(str, numbers), format_size(log.bytes), _span(log.age)))
    print_table(rows)
    if found.blobs.objects:
        print(f"\n{found.blobs.objects} blobs on their way to other hosts, {format_size(found.blobs.bytes)}")


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


async def _export(args: Namespace) -> int:
    from .state_backup import export

    async with client_of(args) as bus:
        with _progress(args, "export") as progress:
            moved = await export(bus.node.jetstream, args.file, progress)
    _say(args, moved, "written to")
    return 0


async def _import(args: Namespace) -> int:
    from .state_backup import import_

    async with client_of(args) as bus:
        with _progress(args, "import") as progress:
            moved = await import_(bus, args.file, progress, replace=args.replace)
    _say(args, moved, "read from")
    return 0


async def _rm(args: Namespace) -> int:
    from .state_survey import find, remove

    async with client_of(args) as bus:
        found = await find(bus.node.jetstream, args.name)
        if args.kind is None and len(found) > 1:
            raise UsageError(f"{args.name} is both a state and a log", hint="say which: --kind state, or --kind log")
        kind = args.kind or found[0]
        if kind not in found:
            raise UsageError(f"{args.name} is a {found[0]}, and no {kind}")
        if not args.yes and not _confirmed(f"Remove the {kind} {args.name} for good?"):
            print("nothing was removed", file=sys.stderr)
            return 1
        await remove(bus, args.name, kind)
    print(to_json({"removed": args.name, "kind": kind}) if args.json else f"removed the {kind} {args.name}")
    return 0


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to confirm it", hint="--yes removes it without a question")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _say(args: Namespace, moved: Moved, how: str) -> None:
    if args.json:
        print(to_json({"file": str(args.file), **vars(moved)}))
        return
    counts = f"{moved.states} states, {moved.logs} logs with {moved.events} events, {format_size(moved.bytes)}"
    print(f"{counts} {how} {args.file}")


@contextmanager
def _progress(args: Namespace, what: str) -> Iterator[Progress]:
    """A bar on a terminal's stderr; nothing elsewhere."""
    if args.quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=max(done, total))


state = Command(
    "list, export, import and remove what actors and event logs have on the disk",
    _configure,
    _run,
    details="An export is of one moment, while the company runs. An import checks the whole file before it changes\n"
    "anything; stop the actors concerned first. `callboard up` starts the daemon that all of this asks.",
)
