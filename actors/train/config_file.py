"""A training configuration from a TOML file and from flags, checked as a whole.

A key that nobody knows is an error that names it and the nearest one that there is. Paths in a file are meant from the
folder that the file is in, those of flags from the working folder.
"""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import msgspec

from ...runtime.errors import ConfigError
from ...runtime.matching import did_you_mean
from ...schemas.train import HookSettings, TrainConfig
from .config_checks import check_config

_DATA_KEYS = ("data", "evaluation.data")


@dataclass(frozen=True, slots=True)
class Given:
    """One value as found: where, and from which folder its paths are meant. Text may stand for a number."""

    value: Any
    source: str
    base: Path
    is_text: bool = False


def load_config(path: Path) -> TrainConfig:
    """The configuration of a file, whole in itself. Raises ConfigError."""
    return build(read_file(path))


def read_file(path: Path) -> dict[str, Given]:
    """What a file sets, by keys as `batch.samples`. Raises ConfigError."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    base = path.absolute().parent
    given: dict[str, Given] = {}
    for key, value in tables.items():
        for name, inner in _flat(key, value, str(path)):
            given[name] = Given(inner, str(path), base)
    return given


def _flat(key: str, value: Any, source: str) -> Iterator[tuple[str, Any]]:
    if key not in _TABLES:
        if key not in _KEYS:
            raise unknown(key, source)
        yield key, value
        return
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: {key} is a table", hint=f"write its settings below [{key}]")
    for name, inner in value.items():
        if f"{key}.{name}" not in _KEYS:
            raise unknown(f"{key}.{name}", source)
        yield f"{key}.{name}", inner


def parse_setting(text: str) -> tuple[str, Given]:
    """`batch.samples=8`, of the flag --set. Raises ConfigError."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise ConfigError(f"--set {text}: it is KEY=VALUE, as in batch.samples=8")
    if key not in _KEYS:
        raise unknown(key, "--set")
    return key, from_flag(value.strip(), "--set")


def from_flag(value: Any, flag: str) -> Given:
    """A text is read as TOML where it is some, a list say, and is itself where it is not."""
    is_text = isinstance(value, str)
    if is_text and value[:1] in ("[", "{", '"', "'"):
        try:
            value, is_text = tomllib.loads(f"value = {value}")["value"], False
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{flag} {value}: not valid TOML: {error}") from error
    return Given(value, flag, Path.cwd(), is_text)


def unknown(key: str, source: str) -> ConfigError:
    known = [*_KEYS, *_TABLES]
    # The name alone may be right, and the table forgotten or mistaken.
    same = [name for name in _KEYS if name.rpartition(".")[2] == key.rpartition(".")[2]]
    guess = same[0] if len(same) == 1 else did_you_mean(key, known)
    hint = f"did you mean {guess}?" if guess else "docs/training.md lists what can be set"
    return ConfigError(f"{source}: unknown key {key}", hint=hint)


def build(given: Mapping[str, Given]) -> TrainConfig:
    """The configuration that the values make, with defaults for the others. Raises ConfigError."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(TrainConfig):
        name = field.name
        if name in _TABLES:
            inner = msgspec.structs.fields(_TABLES[name])
            found = {one.name: given[f"{name}.{one.name}"] for one in inner if f"{name}.{one.name}" in given}
            values[name] = _TABLES[name](
                **{
                    one.name: _value(f"{name}.{one.name}", one.type, found[one.name])
                    for one in inner
                    if one.name in found
                }
            )
        elif name in given:
            values[name] = _value(name, field.type, given[name])
        elif field.required:
            raise ConfigError(f"{name} is not set", hint=f"set {name} in the file, or give it as a flag")
    config = TrainConfig(**values)
    check_config(config)
    return config


def _value(key: str, kind: Any, given: Given) -> Any:
    value = given.value
    if key == "hooks" and isinstance(value, list):
        value = [_hook(number, table, given.source) for number, table in enumerate(value)]
    elif get_origin(kind) is tuple and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        converted = msgspec.convert(value, kind, strict=not given.is_text)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{given.source}: {key} = {value!r} does not fit: {_why(kind, value, error)}") from error
    return _anchored(key, converted, given.base)


def _why(kind: Any, value: Any, error: Exception) -> str:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        known = [str(one.value) for one in kind]
        guess = did_you_mean(str(value), known)
        return f"did you mean {guess}?" if guess else "it is one of " + ", ".join(known)
    return str(error)


def _hook(number: int, table: Any, source: str) -> Any:
    """`options` may be a table."""
    if not isinstance(table, dict):
        raise ConfigError(f"{source}: hooks is a list of tables", hint="write each as [[hooks]]")
    known = [field.name for field in msgspec.structs.fields(HookSettings)]
    for key in table:
        if key not in known:
            guess = did_you_mean(key, known)
            raise ConfigError(
                f"{source}: unknown key hooks[{number}].{key}",
                hint=f"did you mean {guess}?" if guess else "it has " + ", ".join(known),
            )
    options = table.get("options")
    return {**table, "options": msgspec.json.encode(options).decode()} if isinstance(options, dict) else table


def _anchored(key: str, value: Any, base: Path) -> Any:
    """Who trains stands in another folder: paths become absolute."""
    if not isinstance(value, str) or not value:
        return value
    if key == "model":
        from ..models.store import is_path

        return _absolute(value, base) if is_path(value) else value
    if key == "out":
        return _absolute(value, base)
    return _data(value, base) if key in _DATA_KEYS else value


def _data(text: str, base: Path) -> str:
    """The data sets of a mixture, each with its weight as it is."""
    if (base / text).exists():
        return _absolute(text, base)
    from ..data.hub_data import is_data_name
    from ..data.mixture import parse_sources

    parts: list[str] = []
    for source in parse_sources(text):
        name = source.name if is_data_name(source.name) else _absolute(source.name, base)
        parts.append(name if source.weight is None else f"{name}:{source.weight!r}")
    return ",".join(parts)


def _absolute(path: str, base: Path) -> str:
    return str(base / Path(path).expanduser())


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


_TABLES: dict[str, type[msgspec.Struct]] = {
    field.name: field.type for field in msgspec.structs.fields(TrainConfig) if _is_table(field.type)
}
_KEYS: list[str] = [
    name
    for field in msgspec.structs.fields(TrainConfig)
    for name in (
        [f"{field.name}.{inner.name}" for inner in msgspec.structs.fields(_TABLES[field.name])]
        if field.name in _TABLES
        else [field.name]
    )
]
