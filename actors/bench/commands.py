"""The subcommand `callboard bench`, and below it one for each benchmark."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...runtime.command import Command, add_bus_options, add_json_option, tls_of
from ...runtime.errors import UsageError
from . import train_options

if TYPE_CHECKING:
    from argparse import _ArgumentGroup  # pyright: ignore[reportPrivateUsage]

    from .generate_rows import GenerateOptions
    from .report import Report
    from .serve import ServeOptions, Way


class Benchmark(NamedTuple):
    summary: str
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


def _configure(parser: ArgumentParser) -> None:
    names = parser.add_subparsers(dest="benchmark", metavar="NAME", required=True)
    for name, benchmark in BENCHMARKS.items():
        own = names.add_parser(name, help=benchmark.summary, description=benchmark.summary)
        benchmark.configure(own)
        add_json_option(own)


def _run(args: Namespace) -> int:
    return BENCHMARKS[args.benchmark].run(args)


def _show(args: Namespace, measure: Callable[[Callable[[str], None]], Report]) -> int:
    """Run a benchmark with its progress on standard error, and print its report."""
    from rich.console import Console

    progress = Console(stderr=True)
    with progress.status("starting") as status:
        report = measure(status.update)
    for note in report.notes:
        progress.print(note)
    if args.json:
        print(report.to_json())
    else:
        Console().print(*report.tables(), sep="\n")
    return 0


def _configure_bus(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="short rounds and no peers: a check, not a measurement")
    parser.add_argument(
        "--loop", choices=("asyncio", "uvloop"), default="asyncio", help="the event loop on both sides of each ratio"
    )


def _run_bus(args: Namespace) -> int:
    from . import bus

    return _show(args, lambda step: bus.run(args.loop, bus.QUICK if args.quick else bus.Sizes(), step))


def configure_generate(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="one short round: a check, not a measurement")
    parser.add_argument("--model", default="smollm2", help="a model's name or path")
    parser.add_argument("--rows", metavar="NAMES", default="", help="only these rows of the table, by commas")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each is measured (default: 3)")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="[ROW=]FORMAT,...",
        help="weight formats of our engine, the first held against the targets; repeatable",
    )
    ours = _add_engine_options(parser)
    ours.add_argument("--deterministic", action="store_true", help="also measure what batch-invariant arithmetic costs")
    ours.add_argument("--cache-mib", type=int, default=1024, metavar="N", help="for keys and values; peers get as much")
    peers = parser.add_argument_group("peers")
    peers.add_argument("--vllm-python", metavar="PATH", help="the Python that has vLLM's CPU build")
    peers.add_argument("--llamacpp-python", metavar="PATH", help="the Python that has llama-cpp-python")
    peers.add_argument("--no-transformers", action="store_true", help="leave out transformers, which we have ourselves")


def _add_engine_options(parser: ArgumentParser) -> _ArgumentGroup:
    group = parser.add_argument_group("our engine")
    group.add_argument("--no-overlap", action="store_true", help="plan each step after the last one has ended")
    group.add_argument(
        "--engine", action="append", default=[], metavar="KEY=VALUE", help="another of the engine's options; repeatable"
    )
    return group


def _run_generate(args: Namespace) -> int:
    from . import generate

    options = generate_options(args)
    return _show(args, lambda step: generate.run(options, step))


def generate_options(args: Namespace) -> GenerateOptions:
    """What the flags say. Raises UsageError, NoSuchModel, ModelDamaged."""
    from ..models.store import ModelStore
    from .generate_rows import GenerateOptions, choose_rows

    if args.rounds < 1 or args.cache_mib < 1:
        raise UsageError("--rounds and --cache-mib are 1 or more")
    options = GenerateOptions(
        model=ModelStore().path(args.model).absolute(),
        rows=choose_rows([name for name in args.rows.split(",") if name], args.weights),
        rounds=args.rounds,
        peers=_peers(args),
        engine=_engine_settings(args),
        cache_mib=args.cache_mib,
        deterministic=args.deterministic,
    )
    return options.quick() if args.quick else options


def _peers(args: Namespace) -> Mapping[str, Path]:
    import importlib.util
    import sys

    peers: dict[str, Path] = {}
    if not args.no_transformers and importlib.util.find_spec("transformers") is not None:
        peers |= dict.fromkeys(("transformers", "transformers_cb"), Path(sys.executable))
    for name, python in (("vllm", args.vllm_python), ("llamacpp", args.llamacpp_python)):
        if python:
            peers[name] = Path(python).expanduser().absolute()  # no resolve: a venv's Python is a link
            if not peers[name].is_file():
                raise UsageError(f"there is no Python {python}", hint=f"--{name}-python names that of a venv")
    return peers


def _engine_settings(args: Namespace) -> dict[str, object]:
    """What the flags say of our engine. A value of `KEY=VALUE` is JSON, or else the text itself."""
    import msgspec

    settings: dict[str, object] = {"overlap": False} if args.no_overlap else {}
    for pair in args.engine:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"'{pair}' is no KEY=VALUE", hint="for example --engine max_batch_tokens=512")
        try:
            settings[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            settings[key] = value
    return settings


def _configure_kernels(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a check, not a measurement")
    parser.add_argument(
        "--device", default="", metavar="NAME", help="cpu, cuda or cuda:N (default: a card, if there is)"
    )
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="how often each is measured")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw the shares of the ceilings")


def _run_kernels(args: Namespace) -> int:
    from . import kernels
    from .kernels_plot import plot

    if args.plot and args.plot.suffix != ".svg":
        raise UsageError(f"{args.plot} does not end in .svg, the one format of plots")
    if args.rounds < 0:
        raise UsageError("--rounds is 1 or more")
    reports: list[Report] = []

    def measure(step: Callable[[str], None]) -> Report:
        reports.append(kernels.run(kernels.KernelsOptions(args.device, args.quick, args.rounds), step))
        return reports[0]

    code = _show(args, measure)
    if args.plot:
        args.plot.write_text(plot(reports[0]))
    return code


def _configure_serve(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a few short requests: a check, not a measurement")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw latencies and throughput")
    load = parser.add_argument_group("the load")
    level = load.add_mutually_exclusive_group()
    level.add_argument("--rate", default="1,2,4", metavar="R,...", help="requests a second, as a Poisson process")
    level.add_argument("--closed-loop", metavar="N,...", help="in place of rates: clients that wait for their answers")
    load.add_argument("--requests", type=int, default=60, metavar="N", help="at each rate (default: 60)")
    load.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="mean length of prompts")
    load.add_argument("--output-tokens", type=int, default=64, metavar="N", help="mean length of answers")
    load.add_argument(
        "--dataset", type=Path, metavar="FILE", help="conversations in ShareGPT's format, for the lengths"
    )
    load.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed sends the same load")
    load.add_argument("--good-ttft-ms", type=float, default=1000.0, metavar="MS", help="goodput: first token by then")
    load.add_argument("--good-itl-ms", type=float, default=200.0, metavar="MS", help="and mean time between tokens")
    engine = parser.add_argument_group("the engine")
    engine.add_argument("--address", help="the scheduler of an engine that runs; without it one is started for the run")
    engine.add_argument("--model", help="a model's name or path (with --address: whose tokenizer counts)")
    engine.add_argument("--weights", metavar="FORMAT", help="the format of its weights")
    _add_engine_options(parser)
    add_bus_options(parser)


def _run_serve(args: Namespace) -> int:
    import anyio

    from ...runtime.loops import backend_options
    from . import serve
    from .serve_report import plot

    options, way = serve_options(args), _way(args)
    if args.plot and args.plot.suffix != ".svg":
        raise UsageError(f"{args.plot} does not end in .svg, the one format of plots")
    reports: list[serve.ServeReport] = []

    def measure(step: Callable[[str], None]) -> Report:
        reports.append(anyio.run(serve.run, way, options, step, backend_options=backend_options()))
        reports[0].machine["engine"] = args.address or _own_settings(args)
        return reports[0]

    code = _show(args, measure)
    if args.plot:
        args.plot.write_text(plot(reports[0]))
    return code


def serve_options(args: Namespace) -> ServeOptions:
    """What the flags say. Raises UsageError."""
    from .serve import ServeOptions
    from .serve_report import CONCURRENCY, RATE, Bounds

    kind, listed = (CONCURRENCY, args.closed_loop) if args.closed_loop else (RATE, args.rate)
    try:
        levels = tuple(float(value) for value in listed.split(","))
    except ValueError:
        levels = ()
    if not levels or not all(0 < value < float("inf") for value in levels):
        raise UsageError(f"'{listed}' are no positive numbers", hint="for example --rate 0.5,1,2")
    if kind == CONCURRENCY and any(value != int(value) for value in levels):
        raise UsageError(f"'{listed}' are no whole numbers", hint="for example --closed-loop 1,8,32")
    if min(args.requests, args.prompt_tokens, args.output_tokens) < 1:
        raise UsageError("--requests, --prompt-tokens and --output-tokens are 1 or more")
    options = ServeOptions(
        kind=kind,
        levels=levels,
        requests=args.requests,
        prompt=args.prompt_tokens,
        output=args.output_tokens,
        dataset=args.dataset,
        model=args.model or "",
        seed=args.seed,
        bounds=Bounds(args.good_ttft_ms, args.good_itl_ms),
    )
    return options.quick() if args.quick else options


def _way(args: Namespace) -> Way:
    from .serve import engine_at, own_engine

    if args.address:
        return engine_at(args.address, args.nats or "", args.creds or "", args.state_dir, tls_of(args))
    return own_engine(_own_settings(args))


def _own_settings(args: Namespace) -> dict[str, object]:
    return _engine_settings(args) | {key: value for key in ("model", "weights") if (value := getattr(args, key))}


def _configure_gateway(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a few short requests: a check, not a measurement")
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="how often each is measured (default: 5)")
    parser.add_argument("--model", help="a model's name or path")
    parser.add_argument("--weights", metavar="FORMAT", help="the format of its weights")
    _add_engine_options(parser)


def _run_gateway(args: Namespace) -> int:
    from dataclasses import replace

    import anyio

    from ...runtime.loops import backend_options
    from . import gateway

    if args.rounds < 0:
        raise UsageError("--rounds is 1 or more")
    sizes = gateway.QUICK if args.quick else gateway.Sizes()
    sizes = replace(sizes, rounds=args.rounds or sizes.rounds)

    def measure(step: Callable[[str], None]) -> Report:
        return anyio.run(gateway.run, _own_settings(args), sizes, step, backend_options=backend_options())

    return _show(args, measure)


def _configure_quantize(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="little text: a check, not a measurement")
    parser.add_argument("--model", default="smollm2", help="a LLaMA-shaped model's name or path")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the rotation off the grid")
    parser.add_argument("--methods", default="", metavar="A,B", help="of those with 4-bit weights; default: all")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw the perplexities")


def _run_quantize(args: Namespace) -> int:
    from ..models.store import ModelStore
    from . import quantize

    if args.plot and args.plot.suffix != ".svg":
        raise UsageError(f"{args.plot} does not end in .svg, the one format of plots")
    methods = tuple(args.methods.split(",")) if args.methods else quantize.METHODS_4
    if unknown := [name for name in methods if name not in quantize.METHODS_4]:
        raise UsageError(f"no method {unknown[0]!r}", hint=f"--methods takes {', '.join(quantize.METHODS_4)}")
    options = quantize.QuantizeOptions(ModelStore().path(args.model).absolute(), methods=methods, seed=args.seed)
    reports: list[Report] = []

    def measure(step: Callable[[str], None]) -> Report:
        reports.append(quantize.run(options.quick() if args.quick else options, step))
        return reports[0]

    code = _show(args, measure)
    if args.plot:
        args.plot.write_text(quantize.plot(reports[0]))
    return code


def _configure_tools(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="short rounds: a check, not a measurement")


def _run_tools(args: Namespace) -> int:
    from . import tools

    return _show(args, lambda step: tools.run(tools.QUICK if args.quick else tools.Sizes(), step))


def _configure_tui(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="two pages for a second each: a check, no measurement")


def _run_tui(args: Namespace) -> int:
    from . import tui

    return _show(args, lambda step: tui.run(tui.QUICK if args.quick else tui.Sizes(), step))


def _run_train(args: Namespace) -> int:
    from . import train

    options = train_options.chosen(args)
    return _show(args, lambda step: train.run(options, step))


def _run_agents(args: Namespace) -> int:
    from . import agents

    return _show(args, lambda step: agents.run(args.loop, agents.QUICK if args.quick else agents.Sizes(), step))


BENCHMARKS: Mapping[str, Benchmark] = {
    "agents": Benchmark(
        "steps and plans of agents, runs that wait, beside synced publishes and LangGraph", _configure_bus, _run_agents
    ),
    "bus": Benchmark(
        "actors and the bus beside their floors (bare asyncio, raw nats-py) and their peers", _configure_bus, _run_bus
    ),
    "gateway": Benchmark(
        "the way through HTTP beside the bus, and a crowd of clients of which a third goes away",
        _configure_gateway,
        _run_gateway,
    ),
    "generate": Benchmark(
        "our engine beside transformers, vLLM and llama.cpp: batches of prompts, offline",
        configure_generate,
        _run_generate,
    ),
    "kernels": Benchmark(
        "each kernel beside what the machine itself can do: a large copy, a large product",
        _configure_kernels,
        _run_kernels,
    ),
    "quantize": Benchmark(
        "what 4-bit and 8-bit weights, keys and values lose, beside plain rounding", _configure_quantize, _run_quantize
    ),
    "serve": Benchmark(
        "an engine under requests that come at a given rate, as clients see it", _configure_serve, _run_serve
    ),
    "tools": Benchmark(
        "a tool's call beside an ask, a large image through a tool, code in the sandbox", _configure_tools, _run_tools
    ),
    "train": Benchmark(
        "our trainer beside the plain one and TRL's, and what its shards keep in memory",
        train_options.configure,
        _run_train,
    ),
    "tui": Benchmark(
        "how soon the terminal UI is there, and what each page costs on a busy bus", _configure_tui, _run_tui
    ),
}

bench = Command(
    summary="measure Callboard beside its floors and its peers",
    configure=_configure,
    run=_run,
    details="benchmarks:\n" + "\n".join(f"  {name:<9} {benchmark.summary}" for name, benchmark in BENCHMARKS.items()),
)
