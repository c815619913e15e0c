"""The subcommand `callboard bench`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ...runtime.command import Command, add_json_option

BENCHMARKS = {"bus": "actors and the bus beside their floors (bare asyncio, raw nats-py) and their peers"}


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("name", choices=sorted(BENCHMARKS), help="which benchmark")
    parser.add_argument("--quick", action="store_true", help="short rounds and no peers: a check, not a measurement")
    parser.add_argument(
        "--loop", choices=("asyncio", "uvloop"), default="asyncio", help="the event loop on both sides of each ratio"
    )
    add_json_option(parser)


def _run(args: Namespace) -> int:
    from rich.console import Console

    from . import bus

    progress = Console(stderr=True)
    with progress.status("starting") as status:
        report = bus.run(args.loop, bus.QUICK if args.quick else bus.Sizes(), status.update)
    for note in report.notes:
        progress.print(note)
    if args.json:
        print(report.to_json())
    else:
        Console().print(*report.tables(), sep="\n")
    return 0


bench = Command(
    summary="measure Callboard beside its floors and its peers",
    configure=_configure,
    run=_run,
    details="benchmarks:\n" + "\n".join(f"  {name:<8} {what}" for name, what in BENCHMARKS.items()),
)
