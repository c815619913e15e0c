"""`callboard trace`: the last traced requests, or one of them as a tree."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from .command import Command, add_bus_options, add_json_option, run_async
from .commands_actors import at_least_one, client_of, to_json
from .errors import UsageError
from .tables import print_table

if TYPE_CHECKING:
    from ..schemas.trace import TraceSummary


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("id", nargs="?", default="", help="a trace, by the beginning of its identifier")
    parser.add_argument("-n", "--count", type=at_least_one, default=20, help="how many to list (default: 20)")
    parser.add_argument(
        "--otel", metavar="URL", nargs="?", const="", help="send the trace to a collector (OTEL_EXPORTER_OTLP_ENDPOINT)"
    )
    add_json_option(parser)
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    if args.id and not re.fullmatch("[0-9a-f]{1,32}", args.id):
        raise UsageError(f"'{args.id}' is no trace: it is up to 32 hexadecimal digits", hint="`callboard trace` lists")
    if args.otel is not None and not args.id:
        raise UsageError("--otel sends one trace: name it", hint="`callboard trace` lists them")
    return run_async(_one if args.id else _recent, args)


async def _one(args: Namespace) -> int:
    from .traces import draw, milliseconds, otlp, the_one, tree

    async with client_of(args) as bus:
        found = await the_one(bus, args.id)
    _say_silent(found.silent)
    if args.otel is not None:
        from .otlp_http import send

        await send([otlp(found.spans)], args.otel)
        print(f"{len(found.spans)} spans sent")
        return 0
    if args.json:
        print(to_json(otlp(found.spans)))
        return 0
    roots = tree(found.spans)
    errors = sum(bool(span.error) for span in found.spans)
    counts = [
        f"{len(found.spans)} spans",
        f"{len({span.node for span in found.spans})} nodes",
        milliseconds(max(step.at + step.span.took for root in roots for step in root.walk())),
    ]
    if errors:
        counts.append(f"{errors} failed")
    if found.dropped:
        counts.append(f"{found.dropped} more that there was no room for")
    print(f"trace {found.spans[0].trace}: {', '.join(counts)}\n")
    print_table(draw(roots))
    return 0


async def _recent(args: Namespace) -> int:
    from .traces import milliseconds, recent

    async with client_of(args) as bus:
        found, silent = await recent(bus, args.count)
    _say_silent(silent)
    if args.json:
        print(to_json(found))
        return 0
    rows: list[tuple[str, ...]] = [("TRACE", "BEGAN", "WHAT", "TOOK", "SPANS", "ERRORS")]
    for summary in found:
        counts = (str(summary.num_spans), str(summary.num_errors))
        rows.append((summary.trace, _began(summary), _what(summary), milliseconds(summary.first.took), *counts))
    print_table(rows)
    return 0


def _began(summary: TraceSummary) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(summary.first.started / 1e9).strftime("%Y-%m-%d %H:%M:%S")


def _what(summary: TraceSummary) -> str:
    return " ".join(part for part in (summary.first.name, summary.first.actor) if part)


def _say_silent(silent: tuple[str, ...]) -> None:
    if silent:
        print(f"no answer from {', '.join(silent)}: what was done there is missing", file=sys.stderr)


trace = Command(
    "show where a traced request went, how long each step took, and what failed",
    _configure,
    _run,
    details="A request is traced where somebody asks for it: `callboard publish --trace`, `callboard chat --trace`,\n"
    '`with bus.trace() as id:` in Python, or a "traceparent" (W3C trace context) in a JSON message.\n'
    "With an ID, --json prints OTLP/JSON, which collectors of OpenTelemetry take.",
)
