"""The subcommand `callboard bench`, and below it one for each benchmark."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...runtime.command import Command, add_json_option
from ...runtime.errors import UsageError

if TYPE_CHECKING:
    from .generate_rows import GenerateOptions
    from .report import Report


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


def _configure_generate(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="one short round: a check, not a measurement")
    parser.add_argument("--model", default="smollm2", help="a model's name, or the path of a .gguf file")
    parser.add_argument("--rows", metavar="NAMES", default="", help="only these rows of the table, by commas")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each is measured (default: 3)")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="[ROW=]FORMAT,...",
        help="weight formats of our engine, the first held against the targets; repeatable",
    )
    ours = parser.add_argument_group("our engine")
    ours.add_argument("--no-overlap", action="store_true", help="plan each step after the last one has ended")
    ours.add_argument("--deterministic", action="store_true", help="also measure what batch-invariant arithmetic costs")
    ours.add_argument(
        "--engine", action="append", default=[], metavar="KEY=VALUE", help="another of the engine's options; repeatable"
    )
    ours.add_argument("--cache-mib", type=int, default=1024, metavar="N", help="for keys and values; peers get as much")
    peers = parser.add_argument_group("peers")
    peers.add_argument("--vllm-python", metavar="PATH", help="the Python that has vLLM's CPU build")
    peers.add_argument("--llamacpp-python", metavar="PATH", help="the Python that has llama-cpp-python")
    peers.add_argument("--no-transformers", action="store_true", help="leave out transformers, which we have ourselves")


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
    engine = _engine_settings(args.engine)
    if args.no_overlap:
        engine["overlap"] = False
    options = GenerateOptions(
        model=ModelStore().path(args.model),
        rows=choose_rows([name for name in args.rows.split(",") if name], args.weights),
        rounds=args.rounds,
        peers=_peers(args),
        engine=engine,
        cache_mib=args.cache_mib,
        deterministic=args.deterministic,
    )
    return options.quick() if args.quick else options


def _peers(args: Namespace) -> Mapping[str, Path]:
    import importlib.util
    import sys

    peers: dict[str, Path] = {}
    if not args.no_transformers and importlib.util.find_spec("transformers") is not None:
        peers |= dict.fromkeys(("transformers", "continuous"), Path(sys.executable))
    for name, python in (("vllm", args.vllm_python), ("llamacpp", args.llamacpp_python)):
        if python:
            peers[name] = Path(python).expanduser().absolute()  # no resolve: a venv's Python is a link
            if not peers[name].is_file():
                raise UsageError(f"there is no Python {python}", hint=f"--{name}-python names that of a venv")
    return peers


def _engine_settings(given: list[str]) -> dict[str, object]:
    """`KEY=VALUE` pairs; a value is JSON, or else the text itself."""
    import msgspec

    settings: dict[str, object] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"'{pair}' is no KEY=VALUE", hint="for example --engine max_batch_tokens=512")
        try:
            settings[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            settings[key] = value
    return settings


BENCHMARKS: Mapping[str, Benchmark] = {
    "bus": Benchmark(
        "actors and the bus beside their floors (bare asyncio, raw nats-py) and their peers", _configure_bus, _run_bus
    ),
    "generate": Benchmark(
        "our engine beside transformers, vLLM and llama.cpp: batches of prompts, offline",
        _configure_generate,
        _run_generate,
    ),
}


bench = Command(
    summary="measure Callboard beside its floors and its peers",
    configure=_configure,
    run=_run,
    details="benchmarks:\n" + "\n".join(f"  {name:<9} {benchmark.summary}" for name, benchmark in BENCHMARKS.items()),
)
