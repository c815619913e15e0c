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
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--gradio", action="store_true", help="a page made by Gradio instead, until this command ends")
    other.add_argument(
        "--tui", action="store_true", help="the terminal interface in a browser, until this command ends"
    )
    parser.add_argument("--share", action="store_true", help="with --gradio: a public address too, through its makers")
    add_json_option(parser)
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    from ...runtime.errors import UsageError

    if args.share and not args.gradio:
        raise UsageError("--share goes with --gradio")
    if args.tui:
        return _serve_terminal(args)
    return run_async(_open_gradio if args.gradio else _open, args)


def _serve_terminal(args: Namespace) -> int:
    """Each page runs the command anew; it is that which reaches the bus."""
    from . import web_terminal

    _need("textual_serve", "web-tui", "--tui")
    host = args.host or "127.0.0.1"
    port = args.port or web_terminal.free_port(host)
    server = web_terminal.terminal_server(web_terminal.command_of(args), host, port)
    _say_open(host, "drive the terminal")
    _tell(args, server.public_url)
    server.serve()
    return 0


async def _open_gradio(args: Namespace) -> int:
    import anyio

    from ...runtime.commands_actors import client_of
    from .web_gradio import gradio_page, wait_until_served

    _need("gradio", "gradio", "--gradio")  # before anything is started for it
    host = args.host or "127.0.0.1"
    _say_open(host, "ask")
    async with client_of(args) as bus:
        if not args.no_engine and all(actor.kind != ENGINE_KIND for actor in await bus.actors()):
            await _start_engine(bus, args)
        await wait_until_served(bus)
        async with gradio_page(bus, host, args.port or 0, args.share) as (here, public):
            if public:
                print("whoever knows the public address may ask", file=sys.stderr)
            _tell(args, here, public)
            await anyio.sleep_forever()
    return 0


def _need(module: str, extra: str, option: str) -> None:
    """Raises MissingExtra."""
    from importlib.util import find_spec

    from ...runtime.errors import MissingExtra

    if find_spec(module) is None:
        raise MissingExtra.of(extra, f"`callboard web {option}`")


def _say_open(host: str, what: str) -> None:
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(f"whoever reaches {host} may {what}: this page asks for no key", file=sys.stderr)


def _tell(args: Namespace, url: str, public: str = "") -> None:
    if args.json:
        print(json.dumps({"url": url, **({"public": public} if public else {})}), flush=True)
    else:
        print(url, *([public] if public else []), sep="\n", flush=True)
    if not args.no_browser:
        _show(url)


async def _open(args: Namespace) -> int:
    from ...runtime.commands_actors import client_of

    async with client_of(args) as bus:
        info = await _running(bus, args.host, args.port) or await _started(bus, args)
        if not args.no_engine and all(actor.kind != ENGINE_KIND for actor in await bus.actors()):
            await _start_engine(bus, args)
    _tell(args, page_url(info.url))
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
