"""Keys of services, named without being written down: options are shown, logged and sent; keys are not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ....runtime.errors import ConfigError

_MAX_KEY_BYTES = 16_384


def secret(reference: str, environment: Mapping[str, str] = os.environ) -> str:
    """The key that `env:NAME` or `file:PATH` names. A key itself is refused.

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
