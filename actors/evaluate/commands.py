"""`callboard eval`: models asked the same samples, and what was kept of earlier evaluations."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.command import Command, add_bus_options, add_json_option, run_async, settings_of, tls_of
from ...runtime.errors import ActorError, BusError, UsageError
from ...runtime.progress_bar import progress_bar

if TYPE_CHECKING:
    from ...schemas.evaluate import Evaluate, EvaluateProgress, EvaluationReport

    Hear = Callable[[EvaluateProgress], None]

_KEPT = "what was done is kept: the same command goes on after it"


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="one that is served, a name of the store, or a path; an adapter too"
    )
    parser.add_argument("--data", metavar="FILE", default="", help="the samples: JSON lines, JSON, CSV or plain text")
    parser.add_argument(
        "--task", metavar="NAME", default="", help="what they are (default: what the file's content says)"
    )
    parser.add_argument(
        "--shots", type=int, default=0, metavar="K", help="examples before each question (default: none)"
    )
    parser.add_argument("--shots-from", default="", metavar="FILE", help="where the examples are")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="draw N samples (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed draws the same")
    parser.add_argument(
        "--chat", action=BooleanOptionalAction, default=False, help="through the model's chat template (default: no)"
    )
    parser.add_argument("--max-tokens", type=int, default=0, metavar="N", help="of an answer (default: the task's)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N, for a model that nobody serves")
    parser.add_argument("--again", action="store_true", help="ask all of it anew, although it was done before")
    kept = parser.add_argument_group("what is kept")
    kept.add_argument("--list", action="store_true", help="which evaluations there are, the newest first")
    kept.add_argument("--show", default="", metavar="ID", help="the report of one")
    kept.add_argument("--wrong", action="store_true", help="with --show: the samples that were answered wrongly")
    add_json_option(parser)
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    if args.list:
        return _list(args)
    if args.show:
        return _show(args)
    if args.wrong:
        raise UsageError("--wrong says which samples of an evaluation to show", hint="name it with --show ID")
    if not args.models:
        raise UsageError("no model is named", hint="callboard eval MODEL --data FILE; --list shows earlier ones")
    if not args.data:
        raise UsageError("no samples are named", hint="--data FILE; docs/evaluation.md shows each format")
    request = _request(args)
    with _progress() as hear:
        report = _ask(args, request, hear)
    _print(args, report)
    return 0


def _request(args: Namespace) -> Evaluate:
    import msgspec

    from ...schemas.evaluate import Evaluate
    from ..models.store import is_path

    engine = dict(settings_of(args).engine)
    if args.device is not None:
        engine["device"] = args.device
    # The actor's process stands in another folder.
    return Evaluate(
        models=tuple(str(Path(one).expanduser().absolute()) if is_path(one) else one for one in args.models),
        data=str(Path(args.data).expanduser().absolute()),
        task=args.task,
        shots=args.shots,
        shots_from=str(Path(args.shots_from).expanduser().absolute()) if args.shots_from else "",
        limit=args.limit,
        seed=args.seed,
        chat=args.chat,
        max_tokens=args.max_tokens,
        engine=msgspec.json.encode(engine).decode(),
        again=args.again,
    )


def _ask(args: Namespace, request: Evaluate, hear: Hear) -> EvaluationReport:
    reports: list[EvaluationReport] = []
    begun: list[str] = []

    async def ask() -> int:
        from ...runtime.client import connect
        from ...runtime.own_actor import own_actor
        from ...schemas.evaluate import EVALUATE_KIND

        async with (
            connect(args.nats or "", args.creds or "", state_dir=args.state_dir, tls=tls_of(args)) as bus,
            own_actor(bus, EVALUATE_KIND) as evaluator,
            evaluator.stream(request) as heard,
        ):
            async for progress in heard:
                hear(progress)
                begun[:] = [progress.stage]
            reports.append(heard.result)
        return 0

    try:
        run_async(ask)
    except KeyboardInterrupt:
        print(_KEPT, file=sys.stderr)
        raise
    except (ActorError, BusError) as error:
        if begun:
            error.hint = _KEPT
        raise
    return reports[0]


def _list(args: Namespace) -> int:
    import msgspec

    from ..models.evaluations import evaluations_root
    from ..models.store import ModelStore
    from .record import summaries
    from .report import listing

    found = summaries(evaluations_root(ModelStore()))
    if args.json:
        print(msgspec.json.encode(found.evaluations).decode())
    else:
        print("\n".join(listing(found)))
    for trouble in found.trouble:
        print(trouble, file=sys.stderr)
    return 0


def _show(args: Namespace) -> int:
    import msgspec

    from ..models.evaluations import SAMPLES, evaluations_root
    from ..models.store import ModelStore
    from .record import find_record, kept_report, kept_samples
    from .report import sample_lines

    folder = find_record(evaluations_root(ModelStore()), args.show)
    if not args.wrong:
        _print(args, kept_report(folder))
        print(f"every sample: {folder / SAMPLES}", file=sys.stderr)
        return 0
    for sample in kept_samples(folder, wrong=True):
        if args.json:
            print(msgspec.json.encode(sample).decode())
        else:
            print("\n".join(sample_lines(sample)))
    return 0


def _print(args: Namespace, report: EvaluationReport) -> None:
    import msgspec
    from rich.console import Console

    from .report import table

    if args.json:
        print(msgspec.json.encode(report).decode())
        return
    console = Console(markup=False, highlight=False)
    for part in table(report):
        console.print(part)


@contextmanager
def _progress() -> Iterator[Hear]:
    with progress_bar("reading") as show:

        def hear(progress: EvaluateProgress) -> None:
            what = f"{Path(progress.model).name} {progress.stage}".strip()
            show(what, progress.done, progress.total or None)

        yield hear


evaluate = Command(
    "ask models the same samples and compare them",
    _configure,
    _run,
    details="What was done is kept: an interrupted evaluation goes on when the same command is given again,\n"
    "and a finished one is shown.",
)
