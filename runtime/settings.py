"""What a person may set, and the folders that Callboard uses.

Flags win over the environment (`CALLBOARD_*`), that over `callboard.toml` in the working folder, that over the user's
`config.toml`. A key that nobody knows is an error that names the file, the key and the nearest one that exists.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from .errors import ConfigError
from .folders import PREFIX as PREFIX
from .folders import Paths as Paths
from .matching import did_you_mean
from .tls import Tls

PROJECT_FILE = "callboard.toml"

_MIB = 1 << 20

# Ed25519, as `callboard tool key show` prints it: 32 bytes in base64url.
PublicKey = Annotated[str, msgspec.Meta(pattern="^ed25519:[A-Za-z0-9_-]{43}$")]

Seconds = Annotated[float, msgspec.Meta(gt=0)]


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Table `[server]`: the embedded nats-server."""

    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    """0: a free one, chosen at the first start and kept from then on."""

    listen: str = ""
    """`HOST:PORT` to take connections from other machines at, "0.0.0.0:4222" say. Empty: this machine only. What is
    beyond this machine needs `tls_cert` and `tls_key`."""

    tls_cert: str = ""
    """PEM file with the server's certificate, and those between it and its authority."""

    tls_key: str = ""
    """PEM file with its private key."""

    plain: bool = False
    """Listen beyond this machine without TLS: whoever can see the network reads everything."""

    max_payload: Annotated[int, msgspec.Meta(ge=_MIB, le=64 * _MIB)] = 8 * _MIB
    """Bytes a message may have. NATS's own default of 1 MiB is less than a prompt of a million tokens (4 to 5 MB of
    text); 8 MiB is the most that nats-server takes without a warning."""

    max_disk: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Bytes of disk for what JetStream keeps. 0: three quarters of what is free at the start, nats-server's rule."""


class BlobSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Table `[blobs]`: large values that travel as a reference."""

    ttl: Seconds = 3600.0
    """Seconds that a value is kept where who puts it says nothing; it goes earlier when nobody holds it."""

    max_message: Annotated[int, msgspec.Meta(ge=_MIB)] = 1 << 30
    """Bytes that a single message may have, by whatever way it comes: it is in memory whole."""


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Table `[node]`: what `callboard node` takes on this machine."""

    allow_tools_from: tuple[PublicKey, ...] = ()
    """Public keys of those whose tools it runs. Their tools have this person's rights."""


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Table `[agents]`: what the actor `agents` goes by where it was started without."""

    policy: str = ""
    """Path of the file with the rules on tool calls, for all runs; empty: none."""

    keep_days: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Days after which runs that have ended are removed with their logs. 0: they are kept."""

    questions: bool = True
    """Whether what waits for a person is also on the company's board of questions."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings with their defaults. Tables are Structs of their own, or dictionaries that a capability checks."""

    nats: str = ""
    """URL of a NATS server of the user's own; empty: the embedded one."""

    creds: str = ""
    """Path of the creds file for it."""

    tls: Tls = Tls()
    """Table `[tls]`: how to trust that server, and what to show it."""

    model: str = "smollm2"
    """The model that is meant where none is named."""

    timeout: Seconds = 60.0
    """Seconds that an ask waits for its answer where the caller says nothing."""

    drain_timeout: Seconds = 10.0
    """Seconds that work in hand has to finish when the daemon is told to stop."""

    company: str = ""
    """The company file: what the daemon is to run (docs/operations.md)."""

    watchdog: Seconds = 30.0
    """Seconds after which a daemon that does not answer is killed and started again. An actor of the daemon's own
    process that blocks for longer belongs into a process of its own."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    server: ServerSettings = ServerSettings()

    blobs: BlobSettings = BlobSettings()

    node: NodeSettings = NodeSettings()

    agents: AgentSettings = AgentSettings()

    engine: dict[str, Any] = msgspec.field(default_factory=dict)
    """Table `[engine]`: options of the model engine, checked by the engine's own configuration."""

    gateway: dict[str, Any] = msgspec.field(default_factory=dict)
    """Table `[gateway]`: options of gateways, checked by their own configuration."""

    tui: dict[str, Any] = msgspec.field(default_factory=dict)
    """Table `[tui]`: the terminal UI's theme and keys, checked by itself."""

    tools: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    """Tables `[tools.NAME]`: options of the set of tools NAME, checked by the function that makes the set."""


_FOLDERS = frozenset({"STATE_DIR", "DATA_DIR", "CACHE_DIR", "RUNTIME_DIR"})


@dataclass(frozen=True, slots=True)
class _Given:
    """One value as found: where, under which name, and whether it came as text (so `"8"` may mean a number)."""

    value: Any
    source: str
    is_text: bool = False


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    project: Path | None = None,
    user: Path | None = None,
) -> Settings:
    """The settings in force. `flags` are keys as in the files (`"server.port"`), `None` where not given.

    ConfigError, naming file and key, for what does not fit.
    """
    given: dict[str, _Given] = {}
    given.update(_from_file(user or user_config_file()))
    given.update(_from_file(project or Path(PROJECT_FILE)))
    given.update(_from_environment(environment))
    for key, value in (flags or {}).items():
        if value is not None:
            given[key] = _Given(value, "flag --" + key.rpartition(".")[2].replace("_", "-"))
    return _build(given)


def user_config_file() -> Path:
    from platformdirs import user_config_path

    return user_config_path("callboard", appauthor=False) / "config.toml"


def known_keys() -> list[str]:
    """Every key with its table, `server.port`; free tables end in a dot."""
    return list(_fields(Settings))


def _fields(struct: type[msgspec.Struct], table: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(struct):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _fields(field.type, f"{table}{field.name}.")
        else:
            yield f"{table}{field.name}" + ("." if _is_free(field) else "")


def _is_free(field: msgspec.structs.FieldInfo) -> bool:
    return getattr(field.type, "__origin__", None) is dict


def _is_list(field: msgspec.structs.FieldInfo) -> bool:
    return getattr(field.type, "__origin__", None) is tuple


def _listed(text: str) -> list[str]:
    """A list as the environment has it: its parts between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _from_file(path: Path) -> dict[str, _Given]:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        tables = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    given: dict[str, _Given] = {}
    names = known_keys()
    tables_known = {name.partition(".")[0] for name in names if "." in name}
    for key, value in tables.items():
        if key not in tables_known or not isinstance(value, dict):
            if key not in names:
                if key in tables_known:
                    raise ConfigError(f"{path}: {key} is a table", hint=f"write it as [{key}]")
                raise _unknown(str(path), key, [name.rstrip(".") for name in names])
            given[key] = _Given(value, str(path))
            continue
        free = f"{key}." in names
        for inner, inner_value in value.items():
            if not free and f"{key}.{inner}" not in names:
                raise _unknown(str(path), f"{key}.{inner}", names)
            given[f"{key}.{inner}"] = _Given(inner_value, str(path))
    return given


def _from_environment(environment: Mapping[str, str]) -> dict[str, _Given]:
    keys = {key.upper().replace(".", "_"): key for key in known_keys() if not key.endswith(".")}
    free = {key.upper().replace(".", "_"): key for key in known_keys() if key.endswith(".")}
    given: dict[str, _Given] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or not text:
            continue
        name = variable.removeprefix(PREFIX)
        table = next((start for start in free if name.startswith(start)), None)
        if name in keys:
            given[keys[name]] = _Given(text, variable, is_text=True)
        elif table is not None:
            given[free[table] + name.removeprefix(table).lower()] = _Given(_scalar(text), variable)
        elif name not in _FOLDERS and (guess := did_you_mean(name, [*keys, *_FOLDERS], cutoff=0.8)):
            # Other programs may own variables of this prefix; one that nearly is ours is a slip of the pen.
            raise ConfigError(f"{variable} is not a setting", hint=f"did you mean {PREFIX}{guess}?")
    return given


def _scalar(text: str) -> Any:
    """A value of a table whose types are not known here: as TOML reads it, or else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _unknown(source: str, key: str, names: list[str]) -> ConfigError:
    guess = did_you_mean(key, names)
    hint = f"did you mean {guess}?" if guess else "known keys: " + ", ".join(names)
    return ConfigError(f"{source}: unknown key {key}", hint=hint)


def _build(given: Mapping[str, _Given]) -> Settings:
    return _build_table(Settings, "", given)


def _build_table(struct: Any, table: str, given: Mapping[str, _Given]) -> Any:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        key = f"{table}{field.name}"
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            values[field.name] = _build_table(field.type, f"{key}.", given)
        elif _is_free(field):
            start = f"{key}."
            values[field.name] = {k.removeprefix(start): v.value for k, v in given.items() if k.startswith(start)}
        elif key in given:
            found = given[key]
            try:
                value = _listed(found.value) if found.is_text and _is_list(field) else found.value
                values[field.name] = msgspec.convert(value, field.type, strict=not found.is_text)
            except msgspec.ValidationError as error:
                raise ConfigError(f"{found.source}: {key} = {found.value!r} does not fit: {error}") from error
    return struct(**values)
