"""`callboard quantize`: a model in few bits, beside the one that it is made of."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.command import Command, add_bus_options, add_json_option, run_async, tls_of
from ...runtime.progress_bar import progress_bar

if TYPE_CHECKING:
    from ...schemas.quantize import Quantize, QuantizeProgress, QuantizeReport

    Hear = Callable[[QuantizeProgress], None]


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="a model's name in the store, or the path of a .gguf file or a folder")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="the new model; must not be there yet")
    parser.add_argument(
        "--method",
        choices=("rtn", "awq", "gptq", "awq+gptq", "gptaq", "autoround", "smooth"),
        help="plain rounding, AWQ, GPTQ, both, GPTAQ, AutoRound, SmoothQuant (default: gptq for 4 bits, smooth for 8)",
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4, help="4: weights alone; 8: inputs too")
    parser.add_argument(
        "--group-size", type=int, default=0, metavar="N", help="inputs that share a scale (default: 128 or what fits)"
    )
    parser.add_argument("--symmetric", action="store_true", help="4 bits without zero points")
    parser.add_argument(
        "--alpha", type=float, metavar="A", help="SmoothQuant's share for the weights (default: searched for)"
    )
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="AutoRound's, for each layer")
    parser.add_argument("--kv", choices=("int8", "int4"), default="", help="also say how keys and values are kept")
    parser.add_argument(
        "--format",
        dest="layout",
        choices=("compressed-tensors", "awq"),
        default="compressed-tensors",
        help="the layout of the checkpoint",
    )
    text = parser.add_argument_group("calibration")
    text.add_argument("--data", metavar="DATA", default="", help="as for `callboard train` (default: a small text)")
    text.add_argument("--template", default="", metavar="NAME", help="chat template (default: the model's own)")
    text.add_argument("--samples", type=int, default=64, metavar="N", help="sequences at most (default: 64)")
    text.add_argument("--length", type=int, default=512, metavar="L", help="tokens of each (default: 512)")
    text.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed draws the same sequences")
    share = parser.add_argument_group("sharing the work")
    share.add_argument("--on-bus", action="store_true", help="let actors of the running company do it")
    share.add_argument("--layers-per-actor", type=int, default=0, metavar="N", help="with --on-bus: an actor for each")
    share.add_argument("--on", default="", metavar="LABELS", help="with --on-bus: on nodes that have these, by commas")
    add_json_option(parser)
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    import msgspec
    from rich.console import Console

    from .report import table

    request = _request(args)
    with _progress() as hear:
        report = _on_bus(args, request, hear) if args.on_bus else _here(request, hear)
    if args.json:
        print(msgspec.json.encode(report).decode())
    else:
        Console().print(table(report))
        print(report.out)
    return 0


def _request(args: Namespace) -> Quantize:
    from ...schemas.quantize import Quantize
    from ..models.store import is_path

    model = str(Path(args.model).expanduser().absolute()) if is_path(args.model) else args.model
    return Quantize(
        model=model,
        out=str(Path(args.out).expanduser().absolute()),
        method=args.method or ("smooth" if args.bits == 8 else "gptq"),
        bits=args.bits,
        group_size=args.group_size,
        symmetric=args.symmetric,
        layout=args.layout,
        kv=args.kv,
        alpha=0.5 if args.alpha is None else args.alpha,
        search_alpha=args.alpha is None,
        steps=args.steps,
        data=str(Path(args.data).absolute()) if Path(args.data).is_file() else args.data,
        template=args.template,
        samples=args.samples,
        length=args.length,
        seed=args.seed,
        layers_per_actor=args.layers_per_actor,
        labels=tuple(label for label in args.on.split(",") if label),
    )


def _here(request: Quantize, hear: Hear) -> QuantizeReport:
    from .prepare import prepare
    from .run import run
    from .work import work_folder

    job, tokens = prepare(request)
    try:
        return run(job, tokens.calibration, tokens.held_out, hear)
    except KeyboardInterrupt:
        print(f"what is done stays in {work_folder(Path(job.out))}: the same command goes on with it", file=sys.stderr)
        raise


def _on_bus(args: Namespace, request: Quantize, hear: Hear) -> QuantizeReport:
    reports: list[QuantizeReport] = []

    async def ask() -> int:
        from ...runtime.client import connect
        from ...runtime.own_actor import own_actor

        async with (
            connect(args.nats or "", creds=args.creds or "", state_dir=args.state_dir, tls=tls_of(args)) as bus,
            own_actor(bus, "quantize.run") as quantizer,
            quantizer.stream(request) as heard,
        ):
            async for progress in heard:
                hear(progress)
            reports.append(heard.result)
        return 0

    run_async(ask)
    return reports[0]


@contextmanager
def _progress() -> Iterator[Hear]:
    with progress_bar("layers") as show:

        def hear(progress: QuantizeProgress) -> None:
            lost = f", {progress.error:.2%} lost" if progress.error else ""
            show(progress.stage + lost, progress.done, progress.total)

        yield hear


quantize = Command("make a model small: 4-bit or 8-bit weights, calibrated on text", _configure, _run)
