"""Where a set's options come from, and how keys are named without being written down.

The options of a set are a msgspec Struct; the directory gives it what the settings' table `[tools.<set>]` says. What is
left at its default there is taken from the environment variable `CALLBOARD_TOOLS_<SET>`, a JSON object of the same
fields, for a container or a trial that has no file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from ....runtime.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)

_MAX_KEY_BYTES = 16_384


def with_environment(given: S, name: str, environment: Mapping[str, str] = os.environ) -> S:
    """The options, completed from the environment. Raises ConfigError where that is not what the set takes."""
    variable = f"CALLBOARD_TOOLS_{name.upper()}"
    text = environment.get(variable, "")
    if not text:
        return given
    try:
        there = msgspec.json.decode(text, type=type(given))
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{variable} does not fit: {error}", hint="it is a JSON object; docs/tools-included.md lists its fields"
        ) from error
    usual = type(given)()
    changes = {
        field: getattr(there, field)
        for field in given.__struct_fields__
        if getattr(given, field) == getattr(usual, field)
    }
    return msgspec.structs.replace(given, **changes)


def secret(reference: str, environment: Mapping[str, str] = os.environ) -> str:
    """The key that `env:NAME` or `file:PATH` names. A key itself is refused: options are shown, logged and sent.

    Raises ConfigError, which names the reference and never the key.
    """
    kind, _, place = reference.partition(":")
    if kind == "env" and place:
        found = environment.get(place, "")
        if not found:
            raise ConfigError(f"the environment variable {place} is not set", hint="it is to hold a key for a tool")
        return found
    if kind == "file" and place:
        try:
            with open(Path(place).expanduser(), encoding="utf-8") as file:
                found = file.read(_MAX_KEY_BYTES).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the key file {place} cannot be read: {error}") from error
        if not found:
            raise ConfigError(f"the key file {place} is empty")
        return found
    raise ConfigError("a key is named by env:NAME or file:PATH", hint="a key itself is not written into options")
