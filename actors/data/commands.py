"""`callboard data`: look at training data before anything is trained on it."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.command import Command, add_json_option

if TYPE_CHECKING:
    from .check import Report
    from .rendering import Renderer

TEMPLATES = ("chatml", "alpaca")
TOO_LONG = ("truncate", "drop", "split")


def _configure(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check", help="read all records and list those that cannot be used; exit code 1 if there are any"
    )
    _add_files(check)
    check.add_argument("--model", metavar="MODEL", default="", help="count its tokens, and try its chat template")
    _add_template(check)
    check.add_argument("--max-tokens", type=int, default=0, metavar="N", help="the longest sample (default: any)")
    check.add_argument("--too-long", choices=TOO_LONG, default="truncate", help="what to do with longer ones")
    check.add_argument("--workers", type=int, metavar="N", help="processes that tokenize (default: by the file's size)")
    add_json_option(check)
    show = actions.add_parser("show", help="print samples as a model gets them, coloured by what carries loss")
    _add_files(show)
    show.add_argument("-n", type=int, default=3, metavar="N", help="so many of each file (default: 3)")
    show.add_argument("--model", metavar="MODEL", default="smollm2", help="a model's name or path (default: smollm2)")
    _add_template(show)
    add_json_option(show)


def _add_files(parser: ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file of records, hf:ORG/NAME or ms:ORG/NAME")


def _add_template(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--template", choices=TEMPLATES, default="", help="in place of the model's own (chatml where it has none)"
    )


def _run(args: Namespace) -> int:
    paths = [path for name in args.files for path in _files(name)]
    return _check(args, paths) if args.action == "check" else _show(args, paths)


def _files(name: str) -> list[Path]:
    """A mixture's weights say nothing here."""
    from .mixture import files_of, parse_sources

    return [path for source in parse_sources(name) for path in files_of(source.name)]


def _check(args: Namespace, paths: list[Path]) -> int:
    import msgspec

    from ..models.store import ModelStore
    from .check import check
    from .lengths import TooLong
    from .options import DataOptions

    model = ModelStore().path(args.model) if args.model else None
    options = DataOptions(args.template, args.max_tokens, TooLong(args.too_long), skip_bad=True)
    reports = []
    for path in paths:
        report = check(path, model, options, args.workers)
        reports.append(report)
        if not args.json:
            _print_report(report)
    if args.json:
        print(msgspec.json.encode(reports).decode())
    return 1 if any(report.num_problems for report in reports) else 0


def _print_report(report: Report) -> None:
    counts = report.counts
    facts = [_counted(counts.num_records, "record")]
    if report.has_tokens:
        facts += [f"{counts.num_tokens:,} tokens", f"{counts.num_loss_tokens:,} with loss"]
        for what, number in (
            ("truncated", counts.num_truncated),
            ("split", counts.num_split),
            ("dropped", counts.num_dropped),
        ):
            facts += [f"{number:,} {what}"] if number else []
    facts.append(_counted(report.num_problems, "problem"))
    kind = f"{report.format} ({report.container})" if report.format else "unknown format"
    print(f"{report.file}: {kind}: {', '.join(facts)}", flush=True)
    for problem in report.problems:
        print(f"{report.file}:{problem.line}: {problem.reason}")
    if more := report.num_problems - len(report.problems):
        print(f"{report.file}: and {more:,} more", file=sys.stderr)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _show(args: Namespace, paths: list[Path]) -> int:
    import msgspec

    from ..models.store import ModelStore
    from ..models.tokenizer_loading import load_tokenizer
    from .data_file import Problem, bad_record, open_data
    from .rendering import Renderer
    from .show import described, first_samples, print_sample

    renderer: Renderer = Renderer(load_tokenizer(ModelStore().path(args.model)), args.template)
    for path in paths:
        for number, rendered in enumerate(first_samples(open_data(path), renderer, args.n), 1):
            if isinstance(rendered, Problem):
                raise bad_record(path, rendered)
            if args.json:
                print(msgspec.json.encode(described(rendered)).decode())
            else:
                print_sample(f"{path}, sample {number}", rendered)
    return 0


data = Command("check training data, or show it as a model gets it", _configure, _run)
