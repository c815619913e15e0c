"""`callboard merge`, `callboard export` and `callboard adapter`: what comes after training, from a terminal."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.command import Command, add_bus_options, add_json_option, run_async, tls_of
from ...runtime.errors import UsageError

if TYPE_CHECKING:
    from ...runtime.client import Client
    from ...runtime.refs import Ref
    from ...schemas.serve import Adapters

# The engine that `callboard chat` talks with, and the actor that keeps training jobs.
ENGINE = "engine"
JOBS = "train"
# Loading waits for the requests that use the adapter of that name before.
_LOAD_TIMEOUT_S = 300.0
_TYPES = ("f32", "bf16", "f16", "q8_0", "q4_0", "q4_1")


def _configure_merge(parser: ArgumentParser) -> None:
    parser.add_argument(
        "base", nargs="?", default="", metavar="BASE", help="a model's name or path (default: what the adapter names)"
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder that training, or PEFT, has written")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="the new model; must not be there yet")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="", help="default: the base's")
    add_json_option(parser)


def _merge(args: Namespace) -> int:
    import msgspec

    from .merge import merge

    report = merge(Path(args.adapter).expanduser(), Path(args.out).expanduser(), args.base, args.dtype)
    if args.json:
        print(msgspec.json.encode(report).decode())
    else:
        print(report.out)
        print(f"{report.num_matrices} matrices changed, written in {report.dtype}", file=sys.stderr)
    return 0


merge = Command("write the model that a base and an adapter are together", _configure_merge, _merge)


def _configure_export(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model's name in the store, or the path of a file or a folder")
    parser.add_argument("--to", required=True, choices=("gguf", "safetensors"), help="one file, or a folder")
    parser.add_argument("-o", "--out", required=True, metavar="PATH", help="where to; must not be there yet")
    parser.add_argument(
        "--type", choices=_TYPES, default="", help="of the weights (default: the model's own); safetensors: not q*"
    )
    add_json_option(parser)


def _export(args: Namespace) -> int:
    import msgspec

    from .export import export_to_gguf, export_to_safetensors

    if args.to == "gguf" and not args.out.endswith(".gguf"):
        raise UsageError(f"{args.out} is no name for a GGUF file", hint="end it in .gguf")
    function = export_to_gguf if args.to == "gguf" else export_to_safetensors
    report = function(args.model, Path(args.out).expanduser(), args.type)
    if args.json:
        print(msgspec.json.encode(report).decode())
        return 0
    print(report.out)
    kept = f", {report.kept_in_f16} matrices in f16, as their rows are no whole blocks" if report.kept_in_f16 else ""
    print(f"{report.num_tensors} tensors, {report.num_bytes / 1e6:,.1f} MB in {report.type}{kept}", file=sys.stderr)
    return 0


export = Command("write a model as one GGUF file, or as a folder of safetensors", _configure_export, _export)


def _configure_adapter(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="load|unload|list", required=True)
    load = actions.add_parser("load", help="load an adapter into a running engine, or a newer one in its place")
    load.add_argument("name", metavar="NAME", help="what requests call it")
    load.add_argument("source", metavar="PATH|JOB", help="an adapter's folder, or a training job, finished or not")
    unload = actions.add_parser("unload", help="forget one, once the requests that use it have ended")
    unload.add_argument("name", metavar="NAME", help="what requests call it")
    for action in (load, unload, actions.add_parser("list", help="list those that are loaded")):
        action.add_argument("--engine", default=ENGINE, metavar="NAME", help="which engine (default: engine)")
        add_json_option(action)
        add_bus_options(action)


def _adapter(args: Namespace) -> int:
    return run_async(_ask_engine, args)


async def _ask_engine(args: Namespace) -> int:
    from ...runtime.client import connect
    from ...schemas.serve import ListAdapters, UnloadAdapter

    async with connect(args.nats or "", args.creds or "", state_dir=args.state_dir, tls=tls_of(args)) as bus:
        engine = bus.actor(args.engine)
        if args.action == "load":
            adapters = await _load(bus, engine, args.name, args.source)
        elif args.action == "unload":
            adapters = await engine.ask(UnloadAdapter(args.name), timeout=_LOAD_TIMEOUT_S)
        else:
            adapters = await engine.ask(ListAdapters())
    _print(adapters, is_json=args.json)
    return 0


async def _load(bus: Client, engine: Ref, name: str, source: str) -> Adapters:
    from ...schemas.serve import LoadAdapter

    path = await _find(bus, source)
    return await engine.ask(LoadAdapter(name, str(path), replace=True), timeout=_LOAD_TIMEOUT_S)


async def _find(bus: Client, source: str) -> Path:
    """The adapter's folder: the one given, or the latest of a job."""
    from ...schemas.train import AskTraining
    from .adapter_snapshots import adapter_of_job

    path = _given_folder(source)
    return path if path is not None else adapter_of_job(await bus.actor(JOBS).ask(AskTraining(source)))


def _given_folder(source: str) -> Path | None:
    """None for the name of a job. A path that is not here may be one of the engine's machine."""
    from .adapter_snapshots import is_adapter, latest_adapter

    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return path if is_adapter(path) else latest_adapter(path)
    return path if os.sep in source else None


def _print(adapters: Adapters, *, is_json: bool) -> None:
    import msgspec

    if is_json:
        print(msgspec.json.encode(adapters.adapters).decode())
        return
    rows = [("NAME", "RANK", "SIZE", "PATH")]
    rows += [(info.name, str(info.rank), f"{info.num_bytes / 1e6:,.1f} MB", info.path) for info in adapters.adapters]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


adapter = Command("LoRA adapters of a running engine: load, unload, list", _configure_adapter, _adapter)
