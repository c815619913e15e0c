"""`callboard web`: a page to talk with the company's models, in a browser."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

from ...runtime.command import Command, add_bus_options, add_json_option, run_async, settings_of

if TYPE_CHECKING:
    from ...runtime.client import Client
    from ...schemas.gateway import GatewayInfo

KIND, NAME = "gateway.http", "http"
ENGINE_KIND, ENGINE = "serve.engine", "engine"
# A gateway that lives says where it listens at once.
ASK_TIMEOUT_S = 5.0
# Of these nobody can ask for a page: they mean every address that the machine has.
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ArgumentTypeError(f"{port} is no port")
    return port


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("--host", metavar="HOST", help="where a gateway listens that is started (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, metavar="PORT", help="and at which port (default: one that is free)")
    parser.add_argument("--model", metavar="NAME", help="to be served where no engine runs yet")
    parser.add_argument("--no-engine", action="store_true", help="start no engine where none runs")
    parser.add_argument("--no-browser", action="store_true", help="only print the page's address")
    add_json_option(parser)
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    return run_async(_open, args)


async def _open(args: Namespace) -> int:
    from ...runtime.commands_actors import client_of

    async with client_of(args) as bus:
        info = await _running(bus, args.host, args.port) or await _started(bus, args)
        if not args.no_engine and all(actor.kind != ENGINE_KIND for actor in await bus.actors()):
            await _start_engine(bus, args)
    url = page_url(info.url)
    print(json.dumps({"url": url}) if args.json else url, flush=True)
    if not args.no_browser:
        _show(url)
    return 0


async def _running(bus: Client, host: str | None, port: int | None) -> GatewayInfo | None:
    """A gateway that runs, and listens there if that is asked for."""
    from ...runtime.errors import ActorStopped, DeadlineExceeded, NoSuchActor
    from ...schemas.gateway import AskGateway

    for actor in await bus.actors():
        if actor.kind != KIND:
            continue
        try:
            info = await bus.actor(actor.address).ask(AskGateway(), ASK_TIMEOUT_S)
        except (NoSuchActor, ActorStopped, DeadlineExceeded):
            continue  # it is about to end, or hangs: another one will do
        if _listens(info.url, host, port):
            return info
    return None


def _listens(url: str, host: str | None, port: int | None) -> bool:
    from urllib.parse import urlsplit

    at = urlsplit(url)
    return (host is None or at.hostname == host) and (not port or at.port == port)


async def _started(bus: Client, args: Namespace) -> GatewayInfo:
    from ...runtime.errors import NameTaken
    from ...schemas.gateway import AskGateway

    print("starting a gateway ...", file=sys.stderr, flush=True)
    config = json.dumps({"host": args.host or "127.0.0.1", "port": args.port or 0})
    try:
        gateway = await bus.spawn(KIND, config, name=NAME)
    except NameTaken:  # one that listens elsewhere has the name, or something else
        gateway = await bus.spawn(KIND, config)
    return await gateway.ask(AskGateway(), ASK_TIMEOUT_S)


async def _start_engine(bus: Client, args: Namespace) -> None:
    from ...runtime.errors import NameTaken

    settings = settings_of(args, model=args.model)
    print(f"starting the engine with {settings.model} ...", file=sys.stderr, flush=True)
    config = json.dumps({"model": settings.model, **settings.engine})
    try:
        await bus.spawn(ENGINE_KIND, config, name=ENGINE, process=True)
    except NameTaken:
        print("another one starts it at this moment", file=sys.stderr)


def page_url(url: str) -> str:
    """Where a browser on this machine finds the page of a gateway that listens at `url`."""
    for everywhere, here in _ANYWHERE.items():
        url = url.replace(f"//{everywhere}:", f"//{here}:")
    return f"{url}/"


def _show(url: str) -> None:
    import webbrowser

    try:
        shown = webbrowser.open(url)
    except webbrowser.Error:
        shown = False
    if not shown:
        print("no browser was found here: open the address yourself", file=sys.stderr)


web = Command("open a page to chat with the company's models in a browser", _configure, _run)
