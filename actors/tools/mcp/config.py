"""Which MCP servers there are: a file in the form that other hosts read too, `{"mcpServers": {name: {...}}}`.

It lies in the state folder, for this person only, since it may hold keys. Those never travel: an actor is told a
server's name and this file's path, and reads it where it runs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ....runtime.errors import ConfigError
from ....runtime.files import write_private
from ....runtime.folders import Paths
from ....runtime.matching import did_you_mean
from .errors import NoSuchServer

FILE_NAME = "mcp.json"
_TABLE = "mcpServers"
# It is the root of addresses, so no dots.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,48}")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
# The shortest configured value that is blotted out of what a server prints: shorter ones are words.
_MIN_SECRET = 6

Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Transport(StrEnum):
    STDIO = "stdio"
    HTTP = "http"
    SSE = "sse"


_TRANSPORTS = {
    "": None,
    "stdio": Transport.STDIO,
    "http": Transport.HTTP,
    "streamable-http": Transport.HTTP,
    "streamableHttp": Transport.HTTP,
    "sse": Transport.SSE,
}


class SamplingPolicy(StrEnum):
    """What happens when a server asks for text from the company's model."""

    REFUSE = "refuse"
    ASK = "ask"
    """A person is asked each time, on the board of questions."""
    ALLOW = "allow"


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One server. `command`, `args`, `env`, `cwd`, or `url` and `headers`; `${NAME}` and `${NAME:-else}` in them come
    from the environment. `type`: stdio, http or sse; told by the others where it is left out.

    `timeout_s`: of a call, questions to people not counted. `start_s`: it has to connect. `sampling`: whether it may
    use the company's model, for so many tokens at once and so many times a call. `elicitation`: whether it may ask
    people. `tools`: which of its tools are offered, names or patterns. `hints`: whether its annotations are believed;
    else each of its tools counts as destructive. `max_message`: bytes of one message from it.
    """

    type: str = ""
    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str = ""
    url: str = ""
    headers: dict[str, str] = {}
    disabled: bool = False
    timeout_s: Seconds = 60.0
    start_s: Seconds = 30.0
    sampling: SamplingPolicy = SamplingPolicy.REFUSE
    sampling_max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 1024
    sampling_calls: Annotated[int, msgspec.Meta(ge=1)] = 8
    elicitation: bool = True
    elicitation_s: Seconds = 3600.0
    tools: tuple[str, ...] = ("*",)
    hints: bool = True
    max_message: Annotated[int, msgspec.Meta(ge=4096)] = 64 << 20

    @property
    def transport(self) -> Transport:
        return _TRANSPORTS[self.type] or (Transport.STDIO if self.command else Transport.HTTP)

    @property
    def shown(self) -> str:
        """What it is, without anything that may be a key."""
        if self.command:
            return " ".join([self.command, *(["…"] if self.args else [])])
        return without_secrets(self.url)

    def check(self, name: str) -> None:
        """Raises ConfigError."""
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"'{name}' is no name for an MCP server", hint="letters, digits, '-' and '_', at most 48 of them"
            )
        if self.type not in _TRANSPORTS:
            raise ConfigError(f"{name}: there is no transport '{self.type}'", hint="there are: stdio, http, sse")
        if bool(self.command) == bool(self.url):
            raise ConfigError(f"{name}: an MCP server has either a command or a url")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"{name}: the url is to begin with http:// or https://")
        if (self.transport is Transport.STDIO) != bool(self.command):
            raise ConfigError(f"{name}: a server of type {self.type} has a {'url' if self.command else 'command'}")

    def expanded(self, name: str, environment: Mapping[str, str] = os.environ) -> ServerConfig:
        """With variables filled in. Raises ConfigError for one that is not set."""

        def fill(text: str) -> str:
            def value(found: re.Match[str]) -> str:
                if found[1] in environment:
                    return environment[found[1]]
                if found[2] is None:
                    raise ConfigError(
                        f"MCP server {name}: the variable {found[1]} is not set",
                        hint=f"set it where callboard is started, or write ${{{found[1]}:-else}}",
                    )
                return found[2]

            return _VARIABLE.sub(value, text)

        return msgspec.structs.replace(
            self,
            command=fill(self.command),
            args=tuple(map(fill, self.args)),
            env={key: fill(value) for key, value in self.env.items()},
            cwd=fill(self.cwd),
            url=fill(self.url),
            headers={key: fill(value) for key, value in self.headers.items()},
        )

    def secrets(self) -> tuple[str, ...]:
        """What must not get into a log, longest first."""
        found = {*self.env.values(), *self.headers.values(), *self.args}
        found |= {word for value in self.headers.values() for word in value.split()}
        if "?" in self.url or "@" in self.url:
            found.add(self.url)
        return tuple(sorted((value for value in found if len(value) >= _MIN_SECRET), key=len, reverse=True))


def without_secrets(url: str) -> str:
    """A URL without user, password and query."""
    scheme, _, rest = url.partition("://")
    place = rest.partition("?")[0].partition("#")[0]
    host, slash, path = place.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def default_file(state_dir: str = "") -> Path:
    return Paths.find(state_dir).state / FILE_NAME


def read_servers(path: Path, *, missing_ok: bool = True) -> dict[str, ServerConfig]:
    """By name. Raises ConfigError, naming file and key; what it says holds no value of the file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise ConfigError(f"there is no file {path}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        tables = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    # Some hosts write the table under another name.
    found = tables.get(_TABLE, tables.get("servers")) if isinstance(tables, dict) else None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: there is no table {_TABLE}", hint='write {"mcpServers": {"name": {"command": …}}}')
    return {name: _server(path, name, table) for name, table in found.items()}


def _server(path: Path, name: str, table: Any) -> ServerConfig:
    fields = ServerConfig.__struct_fields__
    for key in table if isinstance(table, dict) else ():
        # Keys of other hosts are theirs; one that nearly is ours is a slip of the pen.
        if key not in fields and (guess := did_you_mean(key, fields, cutoff=0.8)):
            raise ConfigError(f"{path}: {name}: unknown key {key}", hint=f"did you mean {guess}?")
    try:
        server = msgspec.convert(table, ServerConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {name}: {error}") from None
    server.check(name)
    return server


def read_server(path: Path, name: str) -> ServerConfig:
    """Raises NoSuchServer, ConfigError."""
    servers = read_servers(path)
    if name not in servers:
        guess = did_you_mean(name, servers)
        raise NoSuchServer(f"no MCP server '{name}' is configured", hint=f"did you mean {guess}?" if guess else "")
    return servers[name]


def write_servers(path: Path, servers: Mapping[str, ServerConfig]) -> None:
    """All of them, with mode 0600. Keys of other hosts are not kept."""
    tables = {name: msgspec.to_builtins(server) for name, server in servers.items()}
    write_private(path, json.dumps({_TABLE: tables}, indent=2) + "\n")
