"""What `callboard up --model M --http HOST:PORT --grpc HOST:PORT` starts once the daemon is there: gateways, then the
model, as permanent roots that the daemon brings back after a crash like anything else it was asked to run.

The kinds are known by name only: the runtime knows nothing of models or protocols.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..schemas.gateway import AskGateway
from .errors import CallboardError, ConfigError
from .folders import Paths
from .tls import absolute

if TYPE_CHECKING:
    from ..schemas.runtime import ActorInfo
    from .client import Client
    from .settings import Settings

ENGINE_KIND, ENGINE = "serve.engine", "engine"
HTTP_KIND, GRPC_KIND = "gateway.http", "gateway.grpc"
GATEWAY_KINDS = (HTTP_KIND, GRPC_KIND)
# The keys of `[gateway]` that name files.
_FILES = ("keys_file", "tls_cert", "tls_key")
# Where `callboard gateway key` keeps keys if nothing is said.
KEYS_FILE = "gateway-keys.json"
ASK_TIMEOUT_S = 3.0


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """`http`, `grpc`: where gateways are to listen, as HOST:PORT; "" for none. `model`: "" for none."""

    model: str = ""
    http: str = ""
    grpc: str = ""

    def __bool__(self) -> bool:
        return bool(self.model or self.http or self.grpc)


class Served(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was started: the gateways' addresses, and the model. `keys`: the file that says who may ask, "" where
    everybody may who reaches them."""

    http: str = ""
    grpc: str = ""
    model: str = ""
    keys: str = ""


def parse_listen(text: str) -> tuple[str, int]:
    """HOST:PORT, or a port alone for this machine only. Raises ConfigError."""
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if separator else "127.0.0.1"
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise ConfigError(f"'{text}' is no address to listen at", hint="it is HOST:PORT, 127.0.0.1:8000 say")
    return host, int(port)


def gateway_options(settings: Settings, paths: Paths) -> dict[str, Any]:
    """The table `[gateway]` with its files made absolute, since no gateway runs in this folder; and with the usual file
    of keys, where it is there and no other is named. Raises ConfigError."""
    options = dict(settings.gateway)
    for name in _FILES:
        if options.get(name):
            options[name] = absolute(str(options[name]))
    usual = paths.state / KEYS_FILE
    if "keys_file" not in options and usual.is_file():
        options["keys_file"] = str(usual)
    return options


def open_to_others(wish: Wish, options: dict[str, Any]) -> str:
    """A warning where a gateway can be reached from other machines by everybody, or in plain text; "" else."""
    exposed = [text for text in (wish.http, wish.grpc) if text and not _is_local(parse_listen(text)[0])]
    missing = [
        what for name, what in (("keys_file", "keys"), ("tls_cert", "TLS")) if not options.get(name)
    ] if exposed else []  # fmt: skip
    if not missing:
        return ""
    return f"{' and '.join(exposed)} is open to other machines, without {' and without '.join(missing)}"


def _is_local(host: str) -> bool:
    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise ConfigError(f"'{host}' is no host to listen at: {error.strerror}") from error
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


async def start_gateway(bus: Client, kind: str, listen: str, options: dict[str, Any], name: str) -> str:
    """Have the daemon start one, in a process of its own; returns its address. Raises what `Client.spawn` does."""
    host, port = parse_listen(listen)
    config = msgspec.json.encode({**options, "host": host, "port": port}).decode()
    ref = await bus.spawn(kind, config, name=name, process=True)
    return (await ref.ask(AskGateway())).url


async def start_served(bus: Client, wish: Wish, settings: Settings, options: dict[str, Any]) -> Served:
    """Gateways first, which say while the model loads that it does. What was started before something fails stays."""
    http = await start_gateway(bus, HTTP_KIND, wish.http, options, "http") if wish.http else ""
    grpc = await start_gateway(bus, GRPC_KIND, wish.grpc, options, "grpc") if wish.grpc else ""
    if wish.model:
        config = msgspec.json.encode({**settings.engine, "model": wish.model}).decode()
        await bus.spawn(ENGINE_KIND, config, name=ENGINE, process=True)
    keys = str(options.get("keys_file", "")) if http or grpc else ""
    return Served(http=http, grpc=grpc, model=wish.model, keys=keys)


async def gateways(bus: Client, actors: Iterable[ActorInfo]) -> dict[str, str]:
    """Where those among `actors` listen that are gateways, by name; "" for one that does not say."""
    found: dict[str, str] = {}
    for info in actors:
        if info.kind in GATEWAY_KINDS:
            try:
                found[info.address] = (await bus.actor(info.address).ask(AskGateway(), timeout=ASK_TIMEOUT_S)).url
            except CallboardError:
                found[info.address] = ""
    return found


def default_keys_file(paths: Paths) -> Path:
    return paths.state / KEYS_FILE
