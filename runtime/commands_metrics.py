"""`callboard metrics`: what every actor, mailbox and subject has counted."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from .command import Command, add_bus_options, run_async
from .commands_actors import client_of, to_json
from .tables import print_table

if TYPE_CHECKING:
    from ..schemas.metrics import Durations, NodeMetrics


def _configure(parser: ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--prometheus", action="store_true", help="print the text format of Prometheus")
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    async def run() -> int:
        from .metrics import measure_all, prometheus

        async with client_of(args) as bus:
            found, silent = await measure_all(bus)
        if silent:
            print(f"no answer from {', '.join(silent)}", file=sys.stderr)
        if args.json:
            print(to_json(found))
        elif args.prometheus:
            print(prometheus(found), end="")
        else:
            _print(found)
        return 0

    return run_async(run)


def _print(found: list[NodeMetrics]) -> None:
    rows: list[tuple[str, ...]] = [
        ("ACTOR", "NODE", "HANDLED", "ERRORS", "DROPPED", "REFUSED", "RESTARTS", "WAITING", "MOST", "MEAN")
    ]
    for node in found:
        for actor in node.actors:
            counts = (actor.handled, actor.errors, actor.dropped, actor.refused, actor.restarts)
            mailbox = (str(actor.mailbox), str(actor.mailbox_high))
            rows.append((actor.address, node.node, *map(str, counts), *mailbox, _mean(actor.durations)))
    print_table(rows)
    print()
    rows = [("SUBJECTS", "NODE", "SENT", "BYTES", "RECEIVED", "BYTES")]
    for node in found:
        for part in node.traffic:
            counts = (part.sent, part.sent_bytes, part.received, part.received_bytes)
            rows.append((f"{part.family}.>", node.node, *map(str, counts)))
    print_table(rows)


def _mean(durations: Durations) -> str:
    count = sum(durations.counts)
    return f"{durations.seconds / count * 1e3:.3f} ms" if count else "-"


metrics = Command("show what every actor, mailbox and subject has counted", _configure, _run)
