"""The key: read from where the configuration says, shown to nobody."""

from __future__ import annotations

import os
from pathlib import Path

from ....runtime.errors import ConfigError
from .config import UpstreamConfig

HIDDEN = "[key]"


class Secret:
    """What must not be printed. `str()` and `repr()` do not show it; `redact` takes it out of a text."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return HIDDEN

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def reveal(self) -> str:
        return self._value

    def redact(self, text: str) -> str:
        return text.replace(self._value, HIDDEN) if self._value else text


def read_key(config: UpstreamConfig) -> Secret:
    """Empty where none is configured. Raises ConfigError where it is not there, or is no key; never says what it is."""
    if config.key_env and config.key_file:
        raise ConfigError("an upstream has key_env or key_file, not both")
    if config.key_env:
        where, value = f"the variable {config.key_env}", os.environ.get(config.key_env, "")
        if not value.strip():
            raise ConfigError(
                f"{where}, which is to hold the upstream's key, is not set",
                hint="set it where the daemon (`callboard up`) is started, or use key_file",
            )
    elif config.key_file:
        where = f"the file {config.key_file}"
        try:
            value = Path(config.key_file).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"{where}, which is to hold the upstream's key, cannot be read: {reason}") from None
    else:
        return Secret("")
    value = value.strip()
    if not value or not (value.isascii() and value.isprintable()):
        raise ConfigError(f"{where} does not hold a key: one line of ASCII is expected")
    return Secret(value)
