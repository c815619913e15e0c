"""The same prompts through our engine and its peers in one run, and ours over each of them.

    python tests/benchmarks/peers_serve.py --vllm-python PATH --llamacpp-python PATH [--rows batch16,batch32]

It takes the options of `callboard bench generate` and measures its rows alone; docs/benchmarks.md says how peers are
installed. Exits with 1 where a contender failed.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from callboard.actors.bench.commands import configure_generate, generate_options
from callboard.actors.bench.generate import run
from callboard.actors.bench.generate_company import OURS
from callboard.actors.bench.generate_rows import Row
from callboard.actors.bench.report import Report
from callboard.runtime.command import add_json_option
from callboard.runtime.errors import CallboardError


def ratio_table(report: Report, rows: tuple[Row, ...], peers: list[str]) -> Table:
    """A line for each row and weight format of ours: our tokens/s, each peer's, and in brackets ours over it."""
    table = Table("row", "ours", title="tokens/s (ours over theirs)", title_justify="left")
    for peer in peers:
        table.add_column(peer, justify="right")
    for row in rows:
        for weights in row.weights:
            ours = report.results.get(f"{row.name}.{OURS}{weights}")
            cells = ["-" if ours is None else f"{ours.value:,.0f} {weights}"]
            for peer in peers:
                theirs = report.results.get(f"{row.name}.{peer}")
                if theirs is None:
                    cells.append("")
                else:
                    ratio = "" if ours is None else f" ({ours.value / theirs.value:.2f})"
                    cells.append(f"{theirs.value:,.0f}{ratio}")
            table.add_row(f"{row.name}: {row.size} × ({row.prompt}, {row.output})", *cells)
    return table


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    configure_generate(parser)
    add_json_option(parser)
    args = parser.parse_args()
    progress = Console(stderr=True)
    try:
        options = replace(generate_options(args), only_rows=True)
        with progress.status("starting") as status:
            report = run(options, status.update)
    except CallboardError as error:
        progress.print(f"{error}\n  {error.hint}".rstrip())
        return 1
    for note in report.notes:
        progress.print(note)
    if args.json:
        print(report.to_json())
    else:
        Console().print(ratio_table(report, options.rows, list(options.peers)))
    return 1 if report.notes else 0


if __name__ == "__main__":
    sys.exit(main())
